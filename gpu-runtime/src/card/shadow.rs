//! The library that stands in front of the driver's in a container with a share of a card: what it is made of lies in `shadow/`,
//! which says how it works; here is what the node must know of it.
//!
//! A container sees, in one folder: it, by every name of the driver's library; the driver's own as [`REAL`]; the file [`SLICE_FILE`],
//! which tells of the slice; the clerk's socket [`CLERK`].

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::slice::pace::Pass;

/// The library itself; empty on machines for which there is none.
pub const LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/libmakai_shadow.so"));
pub const NAME: &str = "libcuda.so.1";
pub const REAL: &str = "libcuda-real.so.1";
pub const SLICE_FILE: &str = "makai-slice";
pub const CLERK: &str = "makai-clerk";
/// Magic and version.
const MAGIC: [u8; 8] = *b"mkslic01";
/// Of a socket's path, with the zero byte at its end.
const PATH_BYTES: usize = 108;

/// The file that tells of the slice: magic, four numbers, two paths; little-endian, 256 bytes.
///
/// # Errors
/// A path is too long for a socket's.
pub fn slice_file(pass: &Pass, memory_bytes: u64, clerk: &Path, desk: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = MAGIC.to_vec();
    for number in [memory_bytes, pass.slice, pass.secret, pass.sm_millis.into()] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    for path in [clerk, desk] {
        let path = path.as_os_str().as_bytes();
        if path.len() >= PATH_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a socket's path has at most 107 bytes"));
        }
        bytes.extend_from_slice(path);
        bytes.resize(bytes.len() + PATH_BYTES - path.len(), 0);
    }
    // A whole number of words.
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    Ok(bytes)
}

/// Writes the library into a folder, where it is not there yet; answers its path. Its name tells its content.
///
/// # Errors
/// The folder cannot be written.
pub fn install(folder: &Path) -> io::Result<PathBuf> {
    let content = blake3::hash(LIBRARY).to_hex();
    let path = folder.join(format!("libcuda-shadow-{}.so", &content[..16]));
    if fs::metadata(&path).is_ok_and(|found| found.len() == LIBRARY.len() as u64) {
        return Ok(path);
    }
    let part = folder.join(format!("libcuda-shadow-{}.part", std::process::id()));
    fs::write(&part, LIBRARY)?;
    fs::set_permissions(&part, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    fs::rename(part, &path)?;
    Ok(path)
}

/// Whether the library works in front of this driver: it loads, and can tell the driver's functions apart. Loads both, so for a
/// process of its own; `folder`: an empty one.
///
/// # Errors
/// Why it does not.
pub fn check(real: &Path, folder: &Path) -> Result<(), String> {
    if LIBRARY.is_empty() {
        return Err("there is no library for containers with shares on this kind of machine".into());
    }
    let made = fs::write(folder.join(NAME), LIBRARY)
        .and_then(|()| std::os::unix::fs::symlink(real, folder.join(REAL)));
    made.map_err(|error| format!("write to {folder:?}: {error}"))?;
    let path = CString::new(folder.join(NAME).as_os_str().as_bytes()).map_err(|error| error.to_string())?;
    // SAFETY: a path that ends with a zero byte. The start-up code of the driver's library runs, which the owner of the machine named.
    let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if library.is_null() {
        return Err(format!("it does not load in front of {real:?}"));
    }
    // SAFETY: an open library, and a text that ends with a zero byte.
    let found = unsafe { libc::dlsym(library, c"makai_shadow_check".as_ptr()) };
    if found.is_null() {
        return Err("it does not hold what it should".into());
    }
    // SAFETY: the function of this name in our own library has this form.
    let check: extern "C" fn() -> i32 = unsafe { std::mem::transmute(found) };
    match check() {
        0 => Ok(()),
        -1 => Err(format!("it does not find the driver's functions in {real:?}")),
        number => Err(format!(
            "the driver hands out functions that cannot be told apart (number {number} of the list)"
        )),
    }
}
