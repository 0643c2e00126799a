//! Containers with shares of cards, through the real worker and the library in front of the driver's: on cards made of software.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use makai_gpu_runtime::card::shadow;
use makai_gpu_runtime::container::ContainerRunner;
use makai_gpu_runtime::runner::{End, GpuLevel, Image, RunError, Runner as _, TaskSpec};

use crate::cards::{CARD, kit, slice};
use crate::kit::{self, Kit};

const MIB: u64 = 1 << 20;
const OUT_OF_MEMORY: &str = "2";
const NOT_FOUND: &str = "500";
const NOT_SUPPORTED: &str = "801";
const ALLOWED: &str = "0";

/// Everything that `escapes.c` tries, and what must come of it.
#[rustfmt::skip]
const ESCAPES: &[(&str, &str)] = &[
    ("init", ALLOWED),
    // Linear memory, by the symbol and by every way to its address.
    ("symbol_over", OUT_OF_MEMORY), ("symbol_all", ALLOWED), ("symbol_one_more", OUT_OF_MEMORY), ("symbol_again", ALLOWED),
    ("address_over", OUT_OF_MEMORY), ("address_all", ALLOWED), ("address_one_more", OUT_OF_MEMORY),
    ("address_legacy_over", OUT_OF_MEMORY), ("address_legacy_one_more", OUT_OF_MEMORY),
    ("address_of_thread_over", OUT_OF_MEMORY), ("address_of_thread_one_more", OUT_OF_MEMORY),
    ("address_v1_over", OUT_OF_MEMORY), ("address_v1_one_more", OUT_OF_MEMORY),
    ("address_of_address_over", OUT_OF_MEMORY), ("address_of_address_again", ALLOWED),
    // A variant of a hooked name that is not known is refused; what is not hooked is the driver's.
    ("address_unknown_variant", NOT_FOUND), ("address_unknown_is_null", "1"), ("address_unhooked", ALLOWED), ("unhooked_works", "42"),
    ("old_allocation", NOT_SUPPORTED),
    // What is told of the card is the slice's.
    ("total", "8388608"), ("left", "8388608"), ("device_total", "8388608"), ("left_after", "5242880"),
    // Pools, by both streams without a handle.
    ("async_over", OUT_OF_MEMORY), ("async_all", ALLOWED), ("async_one_more", OUT_OF_MEMORY),
    ("async_of_thread_one_more", OUT_OF_MEMORY), ("async_linear_one_more", OUT_OF_MEMORY), ("after_async_linear", ALLOWED),
    ("pool_over", OUT_OF_MEMORY), ("pool_all", ALLOWED), ("pool_and_async", OUT_OF_MEMORY), ("after_pool", ALLOWED),
    // Everything else that takes memory.
    ("managed_over", OUT_OF_MEMORY), ("pitch_over", OUT_OF_MEMORY), ("array_over", OUT_OF_MEMORY), ("mipmaps_over", OUT_OF_MEMORY),
    ("array_all", ALLOWED), ("array_one_more", OUT_OF_MEMORY), ("array_sparse", NOT_SUPPORTED),
    ("memory_over", OUT_OF_MEMORY), ("memory_all", ALLOWED), ("memory_mapped", OUT_OF_MEMORY), ("memory_unmapped", ALLOWED),
    ("graph_node_over", OUT_OF_MEMORY), ("graph_any_node_over", OUT_OF_MEMORY), ("graph_node_all", ALLOWED),
    ("graph_one_more", OUT_OF_MEMORY), ("graph_destroyed", OUT_OF_MEMORY), ("graph_trimmed", ALLOWED),
    ("captured_over", OUT_OF_MEMORY), ("heap_over", OUT_OF_MEMORY), ("stack_over", OUT_OF_MEMORY),
    ("child_over", OUT_OF_MEMORY), ("child_rest", ALLOWED), ("after_child", ALLOWED),
    // Launches: each is made, within a turn; how many were is held against the receipt.
    ("launch_of_thread", ALLOWED), ("launch_ex", ALLOWED), ("launch_cooperative", ALLOWED), ("launch_graph", ALLOWED),
    ("launch_on_many_cards", NOT_SUPPORTED), ("synchronized", ALLOWED), ("context_ends", ALLOWED),
    // A cleared environment leads to the same library.
    ("bare_over", OUT_OF_MEMORY),
    // Outside of what this level promises: the driver's own library under the name that this one knows it by.
    ("by_the_real_name", ALLOWED),
];

/// A program of C as an image, with the C library that it and the driver are built for.
pub fn image(kit: &Kit, source: &str) -> Image {
    let folder = tempfile::tempdir().unwrap();
    let (file, program) = (folder.path().join("program.c"), folder.path().join("program"));
    std::fs::write(&file, source).unwrap();
    let built = Command::new("cc").arg("-O1").arg("-o").arg(&program).arg(&file).arg("-ldl").status();
    assert!(built.expect("a C compiler").success());
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |path: &str, file: &Path| {
        kit::entry(&mut archive, tar::EntryType::Regular, path, "", &std::fs::read(file).unwrap());
    };
    add("bin/program", &program);
    let needed = Command::new("ldd").arg(&program).arg(kit.driver_file("libcuda.so.1")).output().unwrap();
    let mut libraries: Vec<String> = String::from_utf8(needed.stdout)
        .unwrap()
        .split_whitespace()
        .filter(|word| word.starts_with("/lib") || word.starts_with("/usr/lib"))
        .map(|word| word.trim_end_matches(':').to_owned())
        .collect();
    // Newer C libraries are one file; the library in front of the driver's names one that older ones had beside it.
    for folder in ["/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/lib64"] {
        libraries.extend(Some(format!("{folder}/libdl.so.2")).filter(|path| Path::new(path).exists()));
    }
    libraries.sort();
    libraries.dedup();
    libraries.iter().for_each(|path| add(&path[1..], Path::new(path)));
    for folder in ["usr/lib/x86_64-linux-gnu/", "usr/lib/aarch64-linux-gnu/"] {
        if Path::new("/").join(folder).is_dir() {
            kit::entry(&mut archive, tar::EntryType::Directory, folder, "", b"");
        }
    }
    kit.image(&archive.into_inner().unwrap())
}

fn task(kit: &Kit, name: &str, image: &Image, share: (u64, u32), words: &[&str]) -> TaskSpec {
    let mut task = kit.task(name, &[]);
    let work = kit::container(&mut task);
    work.image = image.clone();
    work.command = std::iter::once("/bin/program").chain(words.iter().copied()).map(str::to_owned).collect();
    work.env.insert("FAKE_CARDS".into(), CARD.into());
    task.limits.memory_bytes = 256 << 20;
    task.gpus =
        vec![makai_gpu_runtime::slice::Slice { enforcement: GpuLevel::Shadow, ..slice(share.0, share.1) }];
    task
}

/// Every way is allowed within the slice and refused beyond it, or stands in the table as what this level does not promise.
#[tokio::test]
async fn no_way_leads_past_a_slice_but_those_that_are_named() {
    let Some((kit, host, _)) = kit(CARD).await else { return };
    assert!(host.list()[0].has_shadow, "the library works in front of this driver");
    let image = image(&kit, include_str!("escapes.c"));
    let (outcome, said) = kit.run(&task(&kit, "escapes", &image, (8, 500), &[])).await;
    assert!(outcome.is_success(), "{outcome:?} {said:?}");
    assert_eq!(outcome.enforcement.gpu, Some(GpuLevel::Shadow));
    let told: BTreeMap<&str, &str> = said.stdout.lines().filter_map(|line| line.split_once('=')).collect();
    let wrong: Vec<_> = ESCAPES.iter().filter(|(name, wanted)| told.get(name) != Some(wanted)).collect();
    let found: Vec<_> = wrong.iter().map(|(name, wanted)| (name, wanted, told.get(name))).collect();
    assert!(found.is_empty(), "{found:?}");
    // Ten plain ones, four others, and none of what was only captured.
    assert_eq!(outcome.usage.gpu_launches, 14, "{outcome:?}");
    assert_eq!(outcome.usage.gpu_memory_peak_bytes, 8 * MIB);
    assert!(outcome.usage.gpu_busy_ns >= 2_290_000, "{outcome:?}");
}

const SPIN: &str = r#"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static const char MODULE[] = ".version 7.0\n.target sm_70\n.address_size 64\n"
    ".visible .entry spin_20000us()\n{\n\tret;\n}\n.visible .entry spin_2000us()\n{\n\tret;\n}\n";
typedef int (*launcher)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **);
int main(int count, char **words) {
    void *cuda = dlopen("libcuda.so.1", RTLD_NOW), *module = NULL, *kernel = NULL;
    if (!cuda) { puts(dlerror()); return 1; }
    if (((int (*)(unsigned))dlsym(cuda, "cuInit"))(0)) return 1;
    if (((int (*)(void **, const void *, unsigned, int *, void **))dlsym(cuda, "cuModuleLoadDataEx"))(&module, MODULE, 0, NULL, NULL)) return 1;
    if (((int (*)(void **, void *, const char *))dlsym(cuda, "cuModuleGetFunction"))(&kernel, module, words[1])) return 1;
    launcher launch = (launcher)dlsym(cuda, "cuLaunchKernel");
    int (*synchronize)(void) = (int (*)(void))dlsym(cuda, "cuCtxSynchronize");
    for (;;) {
        if (launch(kernel, 1, 1, 1, 32, 1, 1, 0, NULL, NULL, NULL)) return 1;
        if (count > 2 && synchronize()) return 1;
    }
}
"#;

/// Two containers, one with kernels ten times as long, one waiting for each of its own: each gets its share of the card's time.
#[tokio::test]
async fn containers_get_their_shares_of_the_time() {
    let Some((kit, _, _)) = kit(CARD).await else { return };
    let image = image(&kit, SPIN);
    let spinning = |name: &str, words: &[&str], share: u32| {
        let mut task = task(&kit, name, &image, (8, share), words);
        task.limits.time_ms = 3000;
        task
    };
    let long = spinning("long", &["spin_20000us"], 300);
    let short = spinning("short", &["spin_2000us", "synchronize"], 700);
    let ((long, heard), (short, _)) = tokio::join!(kit.run(&long), kit.run(&short));
    assert_eq!((&long.end, &short.end), (&End::TimeLimit, &End::TimeLimit), "{long:?} {heard:?} {short:?}");
    let (long, short) = (long.usage.gpu_busy_ns as f64, short.usage.gpu_busy_ns as f64);
    let part = long / (long + short);
    // One waits for each of its kernels, so a busy machine that lets it wait costs it turns; by turns alone it would be 91 %, without
    // any 50.
    assert!((0.22..=0.42).contains(&part), "30 % are its due: {part} of {} ms", (long + short) / 1e6);
}

/// A container that wants more than the shadow gives waits for a card of its own; a task gets a share of one card alone.
#[tokio::test]
async fn a_stricter_level_is_not_given_away() {
    let Some((kit, _, _)) = kit(CARD).await else { return };
    let image = image(&kit, SPIN);
    let running = kit.start(&task(&kit, "beside", &image, (8, 100), &["spin_2000us"])).await;
    let mut strict = task(&kit, "strict", &image, (8, 100), &["spin_2000us"]);
    strict.gpus[0].enforcement = GpuLevel::Hardware;
    let refused = kit.runner.start(&strict).await;
    assert!(
        matches!(&refused, Err(RunError::Refused(why)) if why.contains("weaker than the customer accepts")),
        "{refused:?}"
    );
    let mut twice = task(&kit, "twice", &image, (8, 100), &["spin_2000us"]);
    twice.gpus.push(twice.gpus[0].clone());
    let refused = kit.runner.start(&twice).await;
    assert!(matches!(&refused, Err(RunError::Invalid(why)) if why.contains("of one card")), "{refused:?}");
    // A daemon that begins anew lets the container go on taking its turns.
    let again = ContainerRunner::open(kit.config()).await.unwrap();
    assert_eq!(again.attempts().await.unwrap().len(), 1);
    running.kill().await.unwrap();
    kit::ended(&*running).await;
}

/// Without the file that tells of the slice, the driver does not start.
#[test]
fn it_fails_closed() {
    let folder = tempfile::tempdir().unwrap();
    let driver = crate::cards::driver(folder.path(), CARD);
    let front = folder.path().join("front");
    std::fs::create_dir(&front).unwrap();
    let check = shadow::check(&driver.join("libcuda.so.1"), &front);
    assert_eq!(check, Ok(()));
    let (source, program) = (folder.path().join("spin.c"), folder.path().join("spin"));
    std::fs::write(&source, SPIN).unwrap();
    assert!(Command::new("cc").arg("-o").arg(&program).arg(&source).arg("-ldl").status().unwrap().success());
    let mut run = Command::new(&program);
    run.arg("spin_2000us")
        .env("LD_LIBRARY_PATH", &front)
        .env("CUDA_VISIBLE_DEVICES", "GPU-1")
        .env("FAKE_CARDS", CARD);
    let ran = run.output().unwrap();
    assert!(!ran.status.success());
    assert!(String::from_utf8_lossy(&ran.stderr).contains("makai-slice"), "{ran:?}");
}
