//! The threads of a software driver, kept apart.
//!
//! lavapipe has a thread for each processor that runs workgroups, and one that hands them
//! out. A scheduler may leave two of the former on one processor, launch after launch:
//! docs/performance.md, "Threads kept apart". On a processor of its own a thread stays.

use std::sync::Once;

/// The threads that a driver started when a device was opened.
#[derive(Debug)]
pub(crate) struct Threads {
    found: system::Found,
    spread: Once,
}

impl Threads {
    /// Runs `open`, in which the driver starts them.
    pub fn of<T>(open: impl FnOnce() -> T) -> (T, Self) {
        let mark = system::Mark::set();
        let opened = open();
        let found = mark.map(system::Mark::found).unwrap_or_default();
        let spread = Once::new();
        (opened, Threads { found, spread })
    }

    /// Gives each a processor, if there is one for every processor at least: fewer would
    /// leave some idle that the scheduler can use.
    ///
    /// Call it after kernels were compiled. The thread that hands out work compiles too, and
    /// would share its processor with those of other devices.
    pub fn spread(&self) {
        self.spread.call_once(|| system::spread(&self.found));
    }
}

/// Where anything of this is not to be had, threads are left to the scheduler.
#[cfg(target_os = "linux")]
mod system {
    use std::fs;
    use std::sync::atomic::{AtomicU32, Ordering};

    use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};

    const OWN_NAME: &str = "/proc/thread-self/comm";

    fn name_of(thread: Pid) -> Option<String> {
        let thread = thread.as_raw_nonzero();
        let name = fs::read_to_string(format!("/proc/self/task/{thread}/comm"));
        name.ok().map(|name| name.trim_end().to_owned())
    }

    /// Threads of one name.
    #[derive(Debug, Default)]
    pub struct Found {
        name: String,
        /// In the order in which they were started, which is that of `/proc`.
        pub threads: Vec<Pid>,
    }

    /// A name of its own for this thread. One that is given none, as those of lavapipe that
    /// compute are, has that of the thread that started it.
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
        pub fn found(self) -> Found {
            let name = self.name.clone();
            // This thread's own name is what it was again.
            drop(self);
            let tasks = fs::read_dir("/proc/self/task").into_iter().flatten();
            let threads = tasks.filter_map(|task| {
                let id = task.ok()?.file_name().to_str()?.parse().ok()?;
                let thread = Pid::from_raw(id)?;
                (name_of(thread)? == name).then_some(thread)
            });
            Found {
                threads: threads.collect(),
                name,
            }
        }
    }

    impl Drop for Mark {
        fn drop(&mut self) {
            let _ = fs::write(OWN_NAME, self.before.trim_end());
        }
    }

    pub fn spread(found: &Found) {
        // One that has ended, or was given a name since, is none of these.
        let all = found.threads.iter().copied();
        let threads = all.filter(|thread| name_of(*thread).as_ref() == Some(&found.name));
        let threads: Vec<Pid> = threads.collect();
        // Where they may run, not where this thread may.
        let mut allowed = threads
            .iter()
            .map(|thread| sched_getaffinity(Some(*thread)).ok());
        let Some(Some(first)) = allowed.next() else {
            return;
        };
        if !allowed.all(|other| other == Some(first)) {
            return;
        }
        let processors = (0..CpuSet::MAX_CPU).filter(|processor| first.is_set(*processor));
        let processors: Vec<usize> = processors.collect();
        if threads.len() < processors.len() {
            return;
        }
        for (thread, processor) in threads.iter().zip(processors.iter().cycle()) {
            let mut own = CpuSet::new();
            own.set(*processor);
            let _ = sched_setaffinity(Some(*thread), &own);
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    #[derive(Debug, Default)]
    pub struct Found;

    pub struct Mark;

    impl Mark {
        pub fn set() -> Option<Self> {
            None
        }

        pub fn found(self) -> Found {
            Found
        }
    }

    pub fn spread(_: &Found) {}
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::sync::{Arc, Mutex, mpsc};
    use std::{fs, thread};

    use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity};

    use super::*;

    fn processors(thread: Pid) -> Vec<usize> {
        let set = sched_getaffinity(Some(thread)).unwrap();
        let all = 0..CpuSet::MAX_CPU;
        all.filter(|processor| set.is_set(*processor)).collect()
    }

    /// Starts threads, which end when it is gone.
    struct Starter {
        _end: mpsc::Sender<()>,
        ended: Arc<Mutex<mpsc::Receiver<()>>>,
    }

    impl Starter {
        fn new() -> Self {
            let (end, ended) = mpsc::channel();
            let ended = Arc::new(Mutex::new(ended));
            Starter { _end: end, ended }
        }

        fn start(&self, name: Option<&str>) -> Pid {
            let (tell, told) = mpsc::channel();
            let ended = Arc::clone(&self.ended);
            let mut builder = thread::Builder::new();
            if let Some(name) = name {
                builder = builder.name(name.to_owned());
            }
            let run = move || {
                tell.send(gettid()).unwrap();
                let _ = ended.lock().unwrap().recv();
            };
            builder.spawn(run).unwrap();
            told.recv().unwrap()
        }
    }

    #[test]
    fn threads_without_a_name_get_a_processor_each() {
        let starter = Starter::new();
        let name = || fs::read_to_string("/proc/thread-self/comm").unwrap();
        let before = name();
        let allowed = processors(gettid());
        let (started, threads) = Threads::of(|| {
            let named = starter.start(Some("named"));
            let unnamed = (0..=allowed.len()).map(|_| starter.start(None));
            (named, unnamed.collect::<Vec<Pid>>())
        });
        let (named, unnamed) = started;
        let later = starter.start(None);
        assert_eq!(name(), before);
        assert_eq!(threads.found.threads, unnamed);

        threads.spread();
        for (at, thread) in unnamed.into_iter().enumerate() {
            assert_eq!(processors(thread), [allowed[at % allowed.len()]]);
        }
        for thread in [named, later, gettid()] {
            assert_eq!(processors(thread), allowed);
        }
    }

    #[test]
    fn fewer_than_there_are_processors_are_left_alone() {
        let starter = Starter::new();
        let allowed = processors(gettid());
        let (started, threads) = Threads::of(|| {
            let unnamed = (1..allowed.len()).map(|_| starter.start(None));
            unnamed.collect::<Vec<Pid>>()
        });
        threads.spread();
        for thread in started {
            assert_eq!(processors(thread), allowed);
        }
    }
}
