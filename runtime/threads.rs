//! The threads of a software driver, kept apart.
//!
//! Such a driver has a thread for each processor that runs workgroups, and one that hands
//! them out. Between launches, which take less than a millisecond, all of them sleep. A
//! scheduler that once wakes two of the former on one processor leaves them there, since
//! the other one is never idle for long: then the second waits until the first has done
//! the work of both. A thread with a processor of its own cannot be put there.

use std::sync::Once;

/// The threads that a driver started for a device.
#[derive(Debug)]
pub(crate) struct Threads {
    /// Their ids, in the order in which they were started.
    ids: Vec<i32>,
    spread: Once,
}

impl Threads {
    /// Runs `open`, in which the driver starts them.
    pub fn of<T>(open: impl FnOnce() -> T) -> (T, Self) {
        let mark = system::Mark::set();
        let opened = open();
        let ids = mark.map(|mark| mark.marked()).unwrap_or_default();
        let spread = Once::new();
        (opened, Threads { ids, spread })
    }

    /// Gives each a processor, one after the other: those that run workgroups are started
    /// one behind the other, so each has its own. For when kernels are compiled: the
    /// thread that hands them out does that too, where those of other devices may as well.
    pub fn spread(&self) {
        self.spread.call_once(|| system::spread(&self.ids));
    }
}

/// Where anything of this is not to be had, threads are left to the scheduler.
#[cfg(target_os = "linux")]
mod system {
    use std::fs;
    use std::sync::atomic::{AtomicU32, Ordering};

    use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};

    const OWN_NAME: &str = "/proc/thread-self/comm";

    /// A name of its own for this thread: a thread that is given none has that of the one
    /// that started it.
    pub struct Mark {
        name: String,
        before: String,
    }

    impl Mark {
        pub fn set() -> Option<Self> {
            static MARKS: AtomicU32 = AtomicU32::new(0);
            let before = fs::read_to_string(OWN_NAME).ok()?;
            let name = format!("driver-{}", MARKS.fetch_add(1, Ordering::Relaxed));
            fs::write(OWN_NAME, &name).ok()?;
            Some(Mark { name, before })
        }

        /// The threads that have the name, but for this one.
        pub fn marked(self) -> Vec<i32> {
            let name = self.name.clone();
            // This thread's own name is what it was again.
            drop(self);
            let tasks = fs::read_dir("/proc/self/task").into_iter().flatten();
            let marked = tasks.filter_map(|task| {
                let task = task.ok()?;
                let called = fs::read_to_string(task.path().join("comm")).ok()?;
                let id = task.file_name().to_str()?.parse().ok()?;
                (called.trim_end() == name).then_some(id)
            });
            let mut marked: Vec<i32> = marked.collect();
            marked.sort_unstable();
            marked
        }
    }

    impl Drop for Mark {
        fn drop(&mut self) {
            let _ = fs::write(OWN_NAME, self.before.trim_end());
        }
    }

    pub fn spread(threads: &[i32]) {
        let Ok(allowed) = sched_getaffinity(None) else {
            return;
        };
        let processors = (0..CpuSet::MAX_CPU).filter(|processor| allowed.is_set(*processor));
        for (thread, processor) in threads.iter().zip(processors.cycle()) {
            let mut own = CpuSet::new();
            own.set(processor);
            // One that is gone needs no processor.
            if let Some(thread) = Pid::from_raw(*thread) {
                let _ = sched_setaffinity(Some(thread), &own);
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    pub struct Mark;

    impl Mark {
        pub fn set() -> Option<Self> {
            None
        }

        pub fn marked(self) -> Vec<i32> {
            Vec::new()
        }
    }

    pub fn spread(_: &[i32]) {}
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity};

    use super::*;

    fn processors(thread: i32) -> Vec<usize> {
        let set = sched_getaffinity(Pid::from_raw(thread)).unwrap();
        let all = 0..CpuSet::MAX_CPU;
        all.filter(|processor| set.is_set(*processor)).collect()
    }

    #[test]
    fn threads_without_a_name_get_a_processor_each() {
        let (end, ended) = mpsc::channel::<()>();
        let ended = std::sync::Arc::new(std::sync::Mutex::new(ended));
        let start = |name: Option<&str>| {
            let (tell, told) = mpsc::channel();
            let ended = std::sync::Arc::clone(&ended);
            let mut builder = thread::Builder::new();
            if let Some(name) = name {
                builder = builder.name(name.to_owned());
            }
            let run = move || {
                tell.send(gettid().as_raw_nonzero().get()).unwrap();
                let _ = ended.lock().unwrap().recv();
            };
            builder.spawn(run).unwrap();
            told.recv().unwrap()
        };
        let name = || std::fs::read_to_string("/proc/thread-self/comm").unwrap();
        let before = name();
        let (started, threads) = Threads::of(|| [None, Some("named"), None, None].map(start));
        let after = start(None);
        assert_eq!(name(), before);
        let [first, named, second, third] = started;
        assert_eq!(threads.ids, [first, second, third]);

        threads.spread();
        let allowed = processors(gettid().as_raw_nonzero().get());
        for (at, thread) in [first, second, third].into_iter().enumerate() {
            assert_eq!(processors(thread), [allowed[at % allowed.len()]]);
        }
        for thread in [named, after] {
            assert_eq!(processors(thread), allowed);
        }
        drop(end);
    }
}
