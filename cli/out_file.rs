//! Files that commands write.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::failure::{Failure, Result};

/// Links that may follow one another, as on Linux.
const MOST_LINKS: usize = 40;

/// Reads the name of a file to write.
pub fn parse_path(text: &str) -> std::result::Result<PathBuf, String> {
    match text {
        "-" => Err("this does not write to standard output; give the name of a file".to_owned()),
        text => Ok(text.into()),
    }
}

/// A file that is written beside its place and renamed when all is there, so that it
/// is whole or not there at all. What exists and is no regular file, such as a pipe
/// or a device, is written to as it stands.
pub struct OutFile {
    /// As it was asked for.
    path: PathBuf,
    file: Kind,
    position: u64,
}

enum Kind {
    Beside { file: NamedTempFile, place: PathBuf },
    Straight(File),
}

impl OutFile {
    /// Begins a file.
    pub fn create(path: &Path) -> Result<OutFile> {
        let file = begin(path).map_err(|e| cannot_write(path, e))?;
        Ok(OutFile {
            path: path.to_owned(),
            file,
            position: 0,
        })
    }

    /// Whether a file can be begun, as far as that can be told without a trace.
    pub fn check(path: &Path) -> Result {
        let checked = match place(path) {
            Ok(Some(place)) => beside(&place).map(drop),
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        checked.map_err(|e| cannot_write(path, e))
    }

    /// Makes room for so many bytes, where a file has a size.
    pub fn reserve(&mut self, bytes: u64) -> Result {
        match &self.file {
            Kind::Beside { file, .. } => file.as_file().set_len(bytes),
            Kind::Straight(_) => Ok(()),
        }
        .map_err(|e| cannot_write(&self.path, e))
    }

    /// Writes at the end of what was written last.
    pub fn write(&mut self, bytes: &[u8]) -> Result {
        self.write_at(self.position, bytes)
    }

    /// Writes from `position` on. Pipes take bytes only in their order.
    pub fn write_at(&mut self, position: u64, bytes: &[u8]) -> Result {
        let is_next = position == self.position;
        let file = match &mut self.file {
            Kind::Beside { file, .. } => file.as_file_mut(),
            Kind::Straight(file) => file,
        };
        let placed = match is_next {
            true => Ok(position),
            false => file.seek(SeekFrom::Start(position)),
        };
        let written = placed.and_then(|_| file.write_all(bytes));
        self.position = position + bytes.len() as u64;
        written.map_err(|e| cannot_write(&self.path, e))
    }

    /// Puts the file in its place.
    pub fn finish(self) -> Result {
        let finished = match self.file {
            Kind::Straight(mut file) => file.flush(),
            Kind::Beside { file, place } => put_in_place(file, &place),
        };
        finished.map_err(|e| cannot_write(&self.path, e))
    }
}

fn cannot_write(path: &Path, error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::Closed,
        _ => Failure::because(format!("cannot write `{}`", path.display()), error),
    }
}

fn begin(path: &Path) -> io::Result<Kind> {
    match place(path)? {
        None => {
            let file = OpenOptions::new().write(true).open(path)?;
            Ok(Kind::Straight(file))
        }
        Some(place) => {
            let file = beside(&place)?;
            Ok(Kind::Beside { file, place })
        }
    }
}

/// Where a file is to be put; `None` for what is written to as it stands.
fn place(path: &Path) -> io::Result<Option<PathBuf>> {
    if path
        .as_os_str()
        .to_string_lossy()
        .ends_with(std::path::is_separator)
    {
        return Err(io::Error::other("it is the name of a folder"));
    }
    match fs::metadata(path) {
        Ok(there) if there.is_dir() => Err(io::Error::other("it is a folder")),
        Ok(there) if !there.is_file() => Ok(None),
        // Its folder may let it be replaced, but somebody wants it kept.
        Ok(there) if there.permissions().readonly() => Err(io::ErrorKind::PermissionDenied.into()),
        // What stands in that file already belongs to whoever directed output into it.
        Ok(_) if is_descriptor(path) => Err(io::Error::other(
            "it is a file that output is redirected to; give the name of that file",
        )),
        _ => without_links(path).map(Some),
    }
}

/// Whether a path names what the process has open.
fn is_descriptor(path: &Path) -> bool {
    let of_process = path.starts_with("/proc") && path.components().any(|c| c.as_os_str() == "fd");
    of_process || path.starts_with("/dev/fd") || path == Path::new("/dev/stdout")
}

/// What a link leads to, whether that is there or not.
fn without_links(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        match fs::read_link(&path) {
            Ok(target) => path = folder_of(&path).join(target),
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::other("it is a link that leads to itself"))
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// Temporary files are for their owner alone, where nothing else is asked for; this one
/// is for whoever may read other new files.
fn beside(place: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".kiln-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // Less what the process's umask takes away.
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder_of(place))
}

/// A file that was there is replaced by one that the same people may read.
fn put_in_place(file: NamedTempFile, place: &Path) -> io::Result<()> {
    if let Ok(there) = fs::metadata(place) {
        file.as_file().set_permissions(there.permissions())?;
    }
    file.persist(place).map_err(|e| e.error)?;
    Ok(())
}
