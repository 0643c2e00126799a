//! Who a command runs as, read from the image's own files: names there are the customer's.

use std::fs::File;
use std::io::Read;

use rustix::fs::{Mode, OFlags};

/// More than any real `/etc/passwd`.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Ids inside a container.
const ID_MAX: u32 = 65_535;

/// A user inside the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// Its home there; `/` when the image does not say.
    pub home: String,
}

/// Finds `uid`, `uid:gid`, `name` or `name:group` in the root file system that this process is in.
///
/// # Errors
/// A line for the customer: there is no such user, or its id is out of range.
pub fn find(wanted: &str) -> Result<User, String> {
    let read = |path: &str| read(path).unwrap_or_default();
    find_in(wanted, &read("/etc/passwd"), &read("/etc/group"))
}

fn find_in(wanted: &str, passwd: &str, group: &str) -> Result<User, String> {
    let (name, wanted_group) = match wanted.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (wanted, None),
    };
    let name = if name.is_empty() { "0" } else { name };
    let mut known =
        passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(|fields| fields.len() >= 6);
    let number: Option<u32> = name.parse().ok();
    let entry =
        known.find(|fields| fields[0] == name || (number.is_some() && fields[2].parse().ok() == number));
    let (uid, own_gid, home) = match (&entry, number) {
        (Some(fields), _) => (
            fields[2].parse().map_err(|_| format!("the image's /etc/passwd gives {name:?} no user id"))?,
            fields[3].parse().unwrap_or(0),
            fields[5].to_owned(),
        ),
        (None, Some(uid)) => (uid, 0, String::new()),
        (None, None) => return Err(format!("the image's /etc/passwd has no user {name:?}")),
    };
    let gid = match wanted_group {
        None | Some("") => own_gid,
        Some(wanted) => match wanted.parse() {
            Ok(gid) => gid,
            Err(_) => group
                .lines()
                .map(|line| line.split(':').collect::<Vec<_>>())
                .find(|fields| fields.len() >= 3 && fields[0] == wanted)
                .and_then(|fields| fields[2].parse().ok())
                .ok_or_else(|| format!("the image's /etc/group has no group {wanted:?}"))?,
        },
    };
    if uid > ID_MAX || gid > ID_MAX {
        return Err(format!("user {uid}:{gid} is out of range: ids in a container go to {ID_MAX}"));
    }
    Ok(User { uid, gid, home: if home.starts_with('/') { home } else { "/".into() } })
}

/// A file of the image; it may be anything, also a pipe that nobody writes.
fn read(path: &str) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).ok()?);
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut text = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_found_in_the_image() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/false\nbroken\n";
        let group = "root:x:0:\nstaff:x:50:web\n";
        let find = |wanted| find_in(wanted, passwd, group).map(|user| (user.uid, user.gid, user.home));
        assert_eq!(find(""), Ok((0, 0, "/root".into())));
        assert_eq!(find("web"), Ok((33, 34, "/srv".into())));
        assert_eq!(find("33:staff"), Ok((33, 50, "/srv".into())));
        assert_eq!(find("1000:7"), Ok((1000, 7, "/".into())));
        assert!(find("nobody").unwrap_err().contains("no user \"nobody\""));
        assert!(find("web:none").unwrap_err().contains("no group"));
        assert!(find("70000").unwrap_err().contains("out of range"));
    }
}
