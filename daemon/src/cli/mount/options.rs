//! Mount options as `mount -o` and `/etc/fstab` give them, and the command line of `mount.makai`.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context as _, bail};

use super::{Args, octal};

/// What `mount` calls to mount a filesystem of type `makai`: a link of this name to the program.
const HELPER: &str = "mount.makai";
/// Options that others mean: `mount` itself, systemd, or every filesystem alike.
const OTHERS: [&str; 23] = [
    "rw",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "nofail",
    "_netdev",
    "defaults",
    "exec",
    "async",
    "atime",
    "noatime",
    "relatime",
    "norelatime",
    "strictatime",
    "lazytime",
    "nosuid",
    "nodev",
    "diratime",
    "nodiratime",
];

/// The command line of this process; that of `mount.makai SOURCE DIR [-o ...]` becomes `makai mount --daemon ...`.
#[must_use]
pub fn command_line() -> Vec<OsString> {
    translated(std::env::args_os().collect())
}

fn translated(given: Vec<OsString>) -> Vec<OsString> {
    let is_helper = given.first().is_some_and(|name| Path::new(name).file_name() == Some(HELPER.as_ref()));
    if !is_helper {
        return given;
    }
    let mut line: Vec<OsString> = ["makai", "mount", "--daemon"].map(OsString::from).into();
    let mut rest = given.into_iter().skip(1);
    while let Some(word) = rest.next() {
        match word.to_str() {
            // Sloppy, verbose, without mtab: nothing that differs here.
            Some("-s" | "-v" | "-n") => {}
            Some("-t" | "-N") => _ = rest.next(),
            Some("-f") => line.push("--fake".into()),
            _ => line.push(word),
        }
    }
    line
}

/// Takes `-o` options over: the same names as the long options, and what `mount` calls some of them.
///
/// # Errors
/// An option is unknown, or its value is.
pub fn take(args: &mut Args) -> anyhow::Result<()> {
    for option in std::mem::take(&mut args.options) {
        let (name, value) = option.split_once('=').map_or((&option[..], None), |(n, v)| (n, Some(v)));
        let with_value = || value.with_context(|| format!("mount option {name} needs a value: {name}=..."));
        let number = || -> anyhow::Result<u64> {
            let value = with_value()?;
            value.parse().with_context(|| format!("mount option {name}={value} is no number"))
        };
        match name.replace('_', "-").as_str() {
            "profile" => args.profile = Some(with_value()?.into()),
            "ca" => args.ca = Some(with_value()?.into()),
            "log" => args.log = Some(with_value()?.into()),
            "ro" | "read-only" => args.read_only = true,
            "durable-close" | "sync" => args.durable_close = true,
            "dirsync" => args.dirsync = true,
            "local-flock" => args.local_flock = true,
            "over" => args.over = true,
            "private" => args.private = true,
            "trusted" | "suid" | "dev" => args.trusted = true,
            "uid" => args.uid = Some(u32::try_from(number()?)?),
            "gid" => args.gid = Some(u32::try_from(number()?)?),
            "umask" => args.umask = octal(with_value()?).map_err(anyhow::Error::msg)?,
            "cache-mib" => args.cache_mib = usize::try_from(number()?)?,
            "cache-dir" => args.cache_dir = Some(with_value()?.into()),
            "cache-size" => args.cache_size = number()?,
            "unsent-mib" => args.unsent_mib = usize::try_from(number()?)?,
            "timeout" => args.timeout = number()?,
            "" => {}
            _ if OTHERS.contains(&name) || name.starts_with("x-") || name.starts_with("comment") => {}
            _ => bail!("mount option {option:?} is unknown; `makai mount --help` lists what there is"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn taken(options: &str) -> anyhow::Result<Args> {
        let mut args = Line::try_parse_from(["mount", "b", "/mnt", "-o", options])?.args;
        take(&mut args)?;
        Ok(args)
    }

    #[test]
    fn what_mount_calls_becomes_a_command_of_ours() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        let given = words("/sbin/mount.makai photos /mnt/p -s -n -t makai -o ro,profile=/etc/p.json");
        let expected = words("makai mount --daemon photos /mnt/p -o ro,profile=/etc/p.json");
        assert_eq!(translated(given), expected);
        let own = words("target/makai mount photos /mnt/p");
        assert_eq!(translated(own.clone()), own);
    }

    #[test]
    fn options_of_fstab_are_those_of_the_command() {
        let args = taken(
            "rw,_netdev,nofail,x-systemd.automount,profile=/etc/p.json,durable-close,uid=7,umask=027,cache_mib=9",
        )
        .unwrap();
        assert_eq!(args.profile.as_deref(), Some(Path::new("/etc/p.json")));
        assert_eq!((args.durable_close, args.uid, args.umask, args.cache_mib), (true, Some(7), 0o027, 9));
        assert!(!args.read_only && taken("ro").unwrap().read_only);
    }

    #[test]
    fn an_option_that_is_none_is_named() {
        for (option, told) in [("colour=red", "colour=red"), ("uid=x", "uid=x"), ("uid", "needs a value")] {
            let error = format!("{:#}", taken(option).unwrap_err());
            assert!(error.contains(told), "{option}: {error}");
        }
    }
}
