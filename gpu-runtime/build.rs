//! Compiles the library that stands in front of the CUDA driver's in containers (`shadow/`), so that the program carries it within
//! itself. It is a library of its own, without the standard library, and so a compilation of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Name of the driver's own library beside it, which it depends on.
const REAL: &str = "libcuda-real.so.1";

fn main() {
    println!("cargo::rerun-if-changed=shadow");
    let target = variable("TARGET");
    let out = PathBuf::from(variable("OUT_DIR"));
    let library = out.join("libmakai_shadow.so");
    let is_known = ["x86_64", "aarch64"].iter().any(|name| target.starts_with(name));
    if !(is_known && target.ends_with("linux-gnu")) {
        // There are no containers with shares of cards on such machines.
        fs::write(&library, "").expect("OUT_DIR can be written");
        return;
    }
    let linker = env::var("RUSTC_LINKER").unwrap_or_else(|_| "cc".into());
    let real = out.join(REAL);
    // Stands for the driver's library: only its name is taken.
    run(Command::new(&linker)
        .args(["-shared", "-nostdlib", "-o"])
        .arg(&real)
        .arg(format!("-Wl,-soname,{REAL}"))
        .args(["-x", "c", "/dev/null"]));
    let shadow = Path::new(&variable("CARGO_MANIFEST_DIR")).join("shadow/lib.rs");
    let mut compile = Command::new(variable("RUSTC"));
    compile
        .args([
            "--edition",
            "2024",
            "--crate-name",
            "makai_shadow",
            "--crate-type",
            "cdylib",
            "--target",
            &target,
        ])
        .args([
            "-C",
            "opt-level=3",
            "-C",
            "codegen-units=1",
            "-C",
            "panic=abort",
            "-C",
            "lto=fat",
            "-C",
            "strip=symbols",
        ])
        .arg(format!("-Clinker={linker}"))
        .args(["-C", "link-arg=-Wl,-soname,libcuda.so.1", "-C", "link-arg=-Wl,--no-as-needed"])
        .arg(format!("-Clink-arg={}", real.display()))
        // Where `dlopen` and `dlsym` are in C libraries before 2.34, and in name after.
        .args(["-C", "link-arg=-l:libdl.so.2", "-C", "link-arg=-lc", "-C", "link-arg=-Wl,-rpath,$ORIGIN"])
        .arg("-o")
        .arg(&library)
        .arg(shadow);
    run(&mut compile);
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}

fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}");
}
