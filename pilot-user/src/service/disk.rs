//! Writes received files on a thread of its own, because a disk may block and a worker must not.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use sha2::{Digest as _, Sha256};

use crate::link::doorbell::Doorbell;

/// Pieces that wait for the disk. With pieces of at most 64 KiB, 4 MiB: what a disk that stalls can make us hold beside
/// the streams' own credit.
const QUEUED_PIECES: usize = 64;

/// Outcomes that wait for the worker, which takes all in every pass, after a ring. The disk writes nothing more while they
/// wait. Lower: it waits for a worker's pass after fewer small files. Higher: gains nothing.
const QUEUED_OUTCOMES: usize = 64;

/// A file being received, as worker and disk number it.
pub type FileId = u64;

/// What the disk is asked.
pub enum Job {
    /// A new file of this name, which [`is_plain_name`] allowed.
    Create(FileId, String),
    /// The next bytes of a file.
    Write(FileId, Vec<u8>),
    /// The file is complete with these bytes.
    Finish(FileId, Vec<u8>),
    /// The file will not be completed.
    Abandon(FileId),
}

/// What the disk answers to [`Job::Finish`], or as soon as something failed.
#[derive(Debug)]
pub struct Outcome {
    /// Which file.
    pub id: FileId,
    /// What it is, or why it is not.
    pub result: Result<Written, String>,
}

/// A file that was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Written {
    /// Where it is.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of what was written, in hexadecimal.
    pub sha256: String,
}

/// The worker's end of the disk thread.
pub struct Disk {
    jobs: Option<Sender<Job>>,
    outcomes: Receiver<Outcome>,
    thread: Option<JoinHandle<()>>,
}

impl Disk {
    /// Starts the thread. It rings the doorbell when there is an outcome, or room again for jobs.
    ///
    /// # Errors
    /// When it cannot be started, or `directory` cannot be made.
    pub fn start(directory: PathBuf, doorbell: Doorbell) -> io::Result<Self> {
        std::fs::create_dir_all(&directory)?;
        let (jobs, from_worker) = bounded(QUEUED_PIECES);
        let (to_worker, outcomes) = bounded(QUEUED_OUTCOMES);
        let thread = std::thread::Builder::new().name("pilot-disk".into()).spawn(move || {
            let mut files = Files { directory, open: Vec::new() };
            for job in from_worker {
                if let Some(outcome) = files.run(job) {
                    // The worker is gone: so is the reason to write.
                    let Ok(()) = to_worker.send(outcome) else { return };
                }
                doorbell.ring();
            }
        })?;
        Ok(Self { jobs: Some(jobs), outcomes, thread: Some(thread) })
    }

    /// Hands over a job; it comes back when there is no room now.
    pub fn try_send(&self, job: Job) -> Result<(), Job> {
        let Some(jobs) = &self.jobs else { return Err(job) };
        jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(job) | TrySendError::Disconnected(job) => job,
        })
    }

    /// Whether there is room for a job.
    pub fn has_room(&self) -> bool {
        self.jobs.as_ref().is_some_and(|jobs| !jobs.is_full())
    }

    /// The next outcome.
    pub fn outcome(&self) -> Option<Outcome> {
        self.outcomes.try_recv().ok()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.jobs = None;
        // The thread may wait for room for one; there are no more when it has done its jobs.
        self.outcomes.iter().for_each(drop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Whether a name is one component that names nothing but a new file: no path, nothing hidden.
pub fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 200 && !name.starts_with('.') && !name.contains(['/', '\0'])
}

struct Files {
    directory: PathBuf,
    open: Vec<Open>,
}

struct Open {
    id: FileId,
    file: File,
    part: PathBuf,
    target: PathBuf,
    bytes: u64,
    digest: Sha256,
}

impl Files {
    fn run(&mut self, job: Job) -> Option<Outcome> {
        let (id, result) = match job {
            Job::Create(id, name) => (id, self.create(id, &name).map(|()| None)),
            Job::Write(id, bytes) => (id, self.write(id, &bytes).map(|()| None)),
            Job::Finish(id, last) => (id, self.write(id, &last).and_then(|()| self.finish(id))),
            Job::Abandon(id) => {
                self.abandon(id);
                return None;
            }
        };
        match result {
            Ok(None) => None,
            Ok(Some(written)) => Some(Outcome { id, result: Ok(written) }),
            Err(error) => {
                self.abandon(id);
                Some(Outcome { id, result: Err(error.to_string()) })
            }
        }
    }

    fn create(&mut self, id: FileId, name: &str) -> io::Result<()> {
        let target = self.directory.join(name);
        if target.exists() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("there is a file {name} already")));
        }
        // Hidden until it is whole; a number of ours keeps two of one name apart.
        let part = self.directory.join(format!(".{name}.{id}.part"));
        let file = OpenOptions::new().write(true).create_new(true).open(&part)?;
        self.open.push(Open { id, file, part, target, bytes: 0, digest: Sha256::new() });
        Ok(())
    }

    /// A file that failed before is not there any more; what still comes for it is ignored.
    fn write(&mut self, id: FileId, bytes: &[u8]) -> io::Result<()> {
        let Some(open) = self.open.iter_mut().find(|open| open.id == id) else { return Ok(()) };
        open.file.write_all(bytes)?;
        open.digest.update(bytes);
        open.bytes += bytes.len() as u64;
        Ok(())
    }

    fn finish(&mut self, id: FileId) -> io::Result<Option<Written>> {
        let Some(at) = self.open.iter().position(|open| open.id == id) else { return Ok(None) };
        let open = self.open.remove(at);
        let placed = place(&open.part, &open.target);
        if placed.is_err() {
            let _ = std::fs::remove_file(&open.part);
        }
        placed?;
        let sha256 = hex(&open.digest.finalize());
        Ok(Some(Written { path: open.target, bytes: open.bytes, sha256 }))
    }

    fn abandon(&mut self, id: FileId) {
        if let Some(at) = self.open.iter().position(|open| open.id == id) {
            let _ = std::fs::remove_file(&self.open.remove(at).part);
        }
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        for open in &self.open {
            let _ = std::fs::remove_file(&open.part);
        }
    }
}

/// Gives a whole file its name, unless that was taken meanwhile: a link refuses to overwrite, a rename would not.
fn place(part: &Path, target: &Path) -> io::Result<()> {
    std::fs::hard_link(part, target)?;
    std::fs::remove_file(part)
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(disk: &Disk) -> Outcome {
        disk.outcomes.recv().unwrap()
    }

    fn send(disk: &Disk, job: Job) {
        disk.jobs.as_ref().unwrap().send(job).unwrap();
    }

    #[test]
    fn files_are_whole_or_not_there() {
        let directory = std::env::temp_dir().join(format!("pilot-disk-{}", std::process::id()));
        let disk = Disk::start(directory.clone(), Doorbell::new().unwrap()).unwrap();
        send(&disk, Job::Create(1, "abc".into()));
        send(&disk, Job::Write(1, b"a".to_vec()));
        send(&disk, Job::Create(2, "abc".into()));
        send(&disk, Job::Write(1, b"bc".to_vec()));
        assert!(!directory.join("abc").exists(), "not before it is whole");
        send(&disk, Job::Finish(1, vec![]));
        let written = wait(&disk).result.unwrap();
        // FIPS 180-2 B.1.
        assert_eq!(written.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(std::fs::read(&written.path).unwrap(), b"abc");
        send(&disk, Job::Finish(2, vec![]));
        assert!(wait(&disk).result.is_err(), "the name was taken meanwhile");
        send(&disk, Job::Create(3, "abc".into()));
        assert!(wait(&disk).result.unwrap_err().contains("abc"));
        send(&disk, Job::Create(4, "left".into()));
        drop(disk);
        let left: Vec<_> = std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["abc"]);
        std::fs::remove_dir_all(&directory).unwrap();
    }

    /// A worker that takes no outcomes is written no more files for, and its end is not waited for.
    #[test]
    fn what_waits_is_bounded() {
        let directory = std::env::temp_dir().join(format!("pilot-disk-bound-{}", std::process::id()));
        let disk = Disk::start(directory.clone(), Doorbell::new().unwrap()).unwrap();
        std::fs::write(directory.join("taken"), "").unwrap();
        let create = |id: usize| Job::Create(id as FileId, "taken".into());
        // Those that wait on both sides of the disk, and the one it cannot get rid of.
        let most = QUEUED_PIECES + QUEUED_OUTCOMES + 1;
        (0..most).for_each(|id| send(&disk, create(id)));
        assert!(!disk.has_room() && disk.try_send(create(most)).is_err());
        assert_eq!(wait(&disk).id, 0);
        send(&disk, create(most));
        drop(disk);
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn names_cannot_leave_the_directory() {
        for name in ["", ".", "..", ".hidden", "a/b", "/etc/passwd", "a\0b", &"x".repeat(201)] {
            assert!(!is_plain_name(name), "{name:?}");
        }
        assert!(is_plain_name("report-2026.pdf"));
    }
}
