//! At a terminal.
#![cfg(target_os = "linux")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::Child;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

use super::chat::{FIRST, SECOND, continued, path, talker};
use super::*;

/// How long a person would wait.
const PATIENCE: Duration = Duration::from_secs(120);

/// The program at a terminal of its own.
struct Terminal {
    /// What a person has before them.
    keyboard: File,
    shown: Receiver<Vec<u8>>,
    /// What was shown, and not waited for yet.
    text: String,
    /// The program's side.
    line: OwnedFd,
    child: Child,
}

impl Terminal {
    fn open(args: &[&str]) -> Terminal {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let keyboard = openpt(flags).unwrap();
        grantpt(&keyboard).unwrap();
        unlockpt(&keyboard).unwrap();
        let line = ioctl_tiocgptpeer(&keyboard, flags).unwrap();
        let kiln = command(args);
        // A session of its own, whose terminal this is.
        let mut command = Command::new("setsid");
        command.arg("-c").arg(kiln.get_program());
        command.args(kiln.get_args()).env("TERM", "xterm");
        for (name, value) in kiln.get_envs() {
            command.env(name, value.unwrap());
        }
        let end = || Stdio::from(line.try_clone().unwrap());
        let child = command.stdin(end()).stdout(end()).stderr(end());
        let child = child.spawn().unwrap();

        let keyboard = File::from(keyboard);
        let mut screen = keyboard.try_clone().unwrap();
        let (send, shown) = channel();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = screen.read(&mut bytes) {
                if send.send(bytes[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Terminal {
            keyboard,
            shown,
            text: String::new(),
            line,
            child,
        }
    }

    fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until `text` is shown; what was shown up to its end.
    fn wait_for(&mut self, text: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.text.find(text) {
                let rest = self.text.split_off(at + text.len());
                return std::mem::replace(&mut self.text, rest);
            }
            let ended = self.child.try_wait().unwrap().is_some();
            let wait = Duration::from_millis(if ended { 5000 } else { 100 });
            let bytes = self.shown.recv_timeout(wait);
            let over = ended || Instant::now() > end;
            assert!(bytes.is_ok() || !over, "no `{text}`, but: {}", self.text);
            self.text += &String::from_utf8_lossy(&bytes.unwrap_or_default());
        }
    }

    fn echoes(&self) -> bool {
        let modes = tcgetattr(&self.line).unwrap().local_modes;
        modes.contains(LocalModes::ECHO | LocalModes::ICANON)
    }

    fn code(&mut self) -> i32 {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap();
            }
            assert!(Instant::now() < end, "it does not end");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Of a test that failed it would wait for a message for ever.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a terminal shows what a message is answered with, in so many tokens.
fn answer(message: &str, tokens: &str) -> String {
    let answer = continued(&format!("/// {message}\n"), tokens);
    answer.trim_end().replace('\n', "\r\n")
}

#[test]
fn a_conversation() {
    let folder = talker();
    let args = ["chat", path(&folder), "--device", "0", "-n", "8"];
    let mut terminal = Terminal::open(&args);
    terminal.wait_for("/exit or Ctrl-D ends.");
    terminal.wait_for("> ");
    assert!(!terminal.echoes());
    // Ctrl-C at the prompt ends nothing.
    terminal.press("not this");
    terminal.wait_for("not this");
    terminal.press("\x03");
    terminal.wait_for("> ");
    terminal.press(&format!("{FIRST}\r"));
    terminal.wait_for(&answer(FIRST, "8"));
    terminal.wait_for("tokens/s on ");
    // Forgotten, so the next answer is the one to a first message.
    terminal.wait_for("> ");
    terminal.press("/clear\r");
    terminal.wait_for("What was said is forgotten.");
    terminal.wait_for("> ");
    terminal.press(&format!("{SECOND}\r"));
    terminal.wait_for(&answer(SECOND, "8"));
    terminal.wait_for("tokens/s on ");
    terminal.wait_for("> ");
    terminal.press("\x04");
    assert_eq!(terminal.code(), 0);
    assert!(terminal.echoes());
}

#[test]
fn ctrl_c_ends_an_answer_and_not_the_conversation() {
    let folder = talker();
    let begun = answer(FIRST, "3");
    let args = ["chat", path(&folder), "--device", "cpu", "-n", "200"];
    let mut terminal = Terminal::open(&args);
    terminal.wait_for("> ");
    terminal.press(&format!("{FIRST}\r"));
    terminal.wait_for(&format!("\r\n{begun}"));
    terminal.press("\x03");
    let end = terminal.wait_for(" tokens in ");
    let tokens = end.rsplit("; ").next().unwrap().split(' ').next().unwrap();
    assert!(tokens.parse::<usize>().unwrap() < 199, "{end}");
    terminal.wait_for("> ");
    terminal.press("/exit\r");
    assert_eq!(terminal.code(), 0);
}

/// Ended by others while it waits for a message, it leaves a terminal that shows what is typed.
#[test]
fn who_is_ended_gives_the_terminal_back() {
    let folder = talker();
    let args = ["chat", path(&folder), "--device", "cpu"];
    let mut terminal = Terminal::open(&args);
    terminal.wait_for("> ");
    assert!(!terminal.echoes());
    let id = Pid::from_child(&terminal.child);
    kill_process(id, Signal::TERM).unwrap();
    // What is pasted stands in no brackets any more.
    terminal.wait_for("\x1b[?2004l\r\n");
    assert_eq!(terminal.code(), 130);
    assert!(terminal.echoes());
}

/// No line moves where graphs are printed.
#[test]
fn graphs_stand_alone() {
    let folder = tempfile::tempdir().unwrap();
    let compiled = folder.path().join("demo.kiln");
    let compiled = compiled.to_str().unwrap();
    let args = ["compile", "demo", "-o", compiled, "--print-after", "input"];
    let summary = format!("{compiled}: gpt2");
    let printed = kiln(args).ok();
    let (graphs, _) = printed.split_once(&summary).unwrap();
    let mut terminal = Terminal::open(&args);
    let shown = terminal.wait_for(&summary);
    assert!(shown.starts_with(&graphs.replace('\n', "\r\n")), "{shown}");
    assert!(!shown.contains("compiling"), "{shown}");
    assert_eq!(terminal.code(), 0);
}
