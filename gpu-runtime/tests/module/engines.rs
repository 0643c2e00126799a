//! Kernels made by chance, on both engines: every instruction that is known, in orders that nobody thought of.
//!
//! The interpreter is the reference: it has its own tests against figures worked out by hand and against other programs.

use std::fmt::Write as _;

use makai_gpu_runtime::module;
use makai_gpu_runtime::module::ptx::{self, native, run};

/// A stream of numbers from a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % sides as u64) as usize
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.roll(from.len())]
    }
}

const THREADS: u32 = 48;
const REGISTERS: usize = 6;

fn any(dice: &mut Dice, letter: &str) -> String {
    format!("%{letter}{}", dice.roll(REGISTERS))
}

/// A register, or now and then a number.
fn given(dice: &mut Dice, letter: &str) -> String {
    const NUMBERS: [&str; 8] = ["0", "1", "31", "32", "255", "0x7fffffff", "-1", "4096"];
    if dice.roll(5) == 0 && matches!(letter, "r" | "d" | "h") {
        dice.pick(&NUMBERS).into()
    } else {
        any(dice, letter)
    }
}

/// One instruction that touches nothing but registers.
fn reckons(dice: &mut Dice) -> String {
    let (kind, letter) = [
        ("u32", "r"),
        ("s32", "r"),
        ("u64", "d"),
        ("s64", "d"),
        ("u16", "h"),
        ("s16", "h"),
        ("f32", "f"),
        ("f64", "g"),
    ][dice.roll(8)];
    let is_float = matches!(letter, "f" | "g");
    let bits = &kind[1..];
    let (to, a, b, c) = (any(dice, letter), given(dice, letter), given(dice, letter), given(dice, letter));
    let (r, x, y, z) = (any(dice, "r"), given(dice, "r"), given(dice, "r"), given(dice, "r"));
    let (p, q) = (any(dice, "p"), any(dice, "p"));
    match dice.roll(22) {
        0 if is_float => format!("{}.rn.{kind} {to}, {a}, {b};", dice.pick(&["add", "sub", "mul", "div"])),
        0 => {
            format!("{}.{kind} {to}, {a}, {b};", dice.pick(&["add", "sub", "mul.lo", "mul.hi", "div", "rem"]))
        }
        1 => format!("{}.{kind} {to}, {a}, {b};", dice.pick(&["min", "max"])),
        2 if is_float => format!("fma.rn.{kind} {to}, {a}, {b}, {c};"),
        2 => format!("mad.{}.{kind} {to}, {a}, {b}, {c};", dice.pick(&["lo", "hi"])),
        3 if is_float => format!("{}.{kind} {to}, {a};", dice.pick(&["neg", "abs", "sqrt.rn", "rcp.rn"])),
        3 => format!("{}.b{bits} {to}, {a}, {b};", dice.pick(&["and", "or", "xor"])),
        4 if !is_float => format!("{}.b{bits} {to}, {a}, {y};", dice.pick(&["shl", "shr"])),
        5 if !is_float => format!("shr.{kind} {to}, {a}, {y};"),
        6 => format!("lop3.b32 {r}, {x}, {y}, {z}, {};", dice.roll(256)),
        7 => {
            let way = dice.pick(&["l.wrap", "r.wrap", "l.clamp", "r.clamp"]);
            let high = if dice.roll(2) == 0 { x.clone() } else { y };
            format!("shf.{way}.b32 {r}, {x}, {high}, {z};")
        }
        8 => format!("prmt.b32 {r}, {x}, {y}, {};", dice.pick(&["0x0123", "0x7654", "0x89ab", "0x4102"])),
        9 => format!("bfe.{} {r}, {x}, {}, {};", dice.pick(&["u32", "s32"]), dice.roll(40), dice.roll(40)),
        10 => format!("bfi.b32 {r}, {x}, {y}, {}, {};", dice.roll(40), dice.roll(40)),
        11 => {
            let (u, v) = (any(dice, "r"), any(dice, "r"));
            let ways = [("add.cc", "addc.cc", "addc"), ("sub.cc", "subc.cc", "subc")];
            let (first, next, last) = ways[dice.roll(2)];
            format!("{first}.u32 {r}, {x}, {y};\n{next}.u32 {u}, {v}, {z};\n{last}.u32 {v}, {u}, {x};")
        }
        12 | 13 if is_float => {
            let how =
                dice.pick(&["eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "geu", "num", "nan"]);
            format!("setp.{how}.{kind} {p}, {a}, {b};")
        }
        12 => format!("setp.{}.{kind} {p}, {a}, {b};", dice.pick(&["eq", "ne", "lt", "le", "gt", "ge"])),
        13 => format!(
            "setp.{}.{}.{kind} {p}|{q}, {a}, {b}, {};",
            dice.pick(&["eq", "lt", "ge"]),
            dice.pick(&["and", "or", "xor"]),
            any(dice, "p")
        ),
        14 if is_float => format!("selp.{kind} {to}, {a}, {b}, {p};"),
        14 => format!("selp.b{bits} {to}, {a}, {b}, {p};"),
        15 => format!("{}.pred {p}, {q}, {};", dice.pick(&["and", "or", "xor"]), any(dice, "p")),
        16 => {
            let (into, target) = [
                ("u32", "r"),
                ("s32", "r"),
                ("u64", "d"),
                ("s64", "d"),
                ("u16", "h"),
                ("u8", "h"),
                // Registers wider than what they are given.
                ("s16", "r"),
                ("u16", "d"),
                ("s8", "r"),
                ("s8", "h"),
                ("s32", "d"),
                ("u32", "d"),
            ][dice.roll(12)];
            let target = any(dice, target);
            if is_float {
                format!("cvt.rzi.{into}.{kind} {target}, {a};")
            } else {
                format!("cvt.{into}.{kind} {target}, {a};")
            }
        }
        17 => {
            let (f, g, d) = (any(dice, "f"), any(dice, "g"), any(dice, "d"));
            match dice.roll(6) {
                0 => format!("cvt.f64.f32 {g}, {f};"),
                1 => format!("cvt.rn.f32.f64 {f}, {g};"),
                2 => format!("cvt.rn.f32.{} {f}, {x};", dice.pick(&["u32", "s32"])),
                3 => format!("cvt.rn.f64.{} {g}, {d};", dice.pick(&["u64", "s64"])),
                4 => format!("cvt.rn.f32.{} {f}, {d};", dice.pick(&["u64", "s64"])),
                _ => format!("cvt.rni.s32.f32 {r}, {f};"),
            }
        }
        18 => {
            let (d, f, g) = (any(dice, "d"), any(dice, "f"), any(dice, "g"));
            match dice.roll(6) {
                0 => format!("mov.b64 {d}, {{{r}, {}}};", any(dice, "r")),
                1 => format!("mov.b64 {{{r}, {}}}, {d};", any(dice, "r")),
                2 => format!("mov.b32 {r}, {f};"),
                3 => format!("mov.b32 {f}, {r};"),
                4 => format!("mov.b64 {d}, {g};"),
                _ => format!("mov.b64 {g}, {d};"),
            }
        }
        19 => format!("mul.wide.{} {}, {x}, {y};", dice.pick(&["u32", "s32"]), any(dice, "d")),
        20 => format!("{}.b32 {r}, {x};", dice.pick(&["not", "popc", "clz", "brev"])),
        _ if is_float => format!("mov.{kind} {to}, {a};"),
        _ => format!("mov.b{bits} {to}, {a};"),
    }
}

/// Instructions with memory, other threads or branches in them; `name` makes labels their own.
fn does(dice: &mut Dice, name: &str, depth: usize) -> String {
    let (r, d, p) = (any(dice, "r"), any(dice, "d"), any(dice, "p"));
    match dice.roll(if depth == 0 { 8 } else { 12 }) {
        0 => {
            let (kind, register) = [
                ("u8", "h"),
                ("s8", "h"),
                ("u16", "h"),
                ("s16", "r"),
                ("s8", "r"),
                ("b32", "r"),
                ("s32", "d"),
                ("f32", "f"),
                ("f64", "g"),
            ][dice.roll(9)];
            let space = dice.pick(&[".global", ""]);
            format!("ld{space}.{kind} {}, [%in+{}];", any(dice, register), dice.roll(6) * 8)
        }
        1 => format!("ld.global.v2.u32 {{{r}, {}}}, [%in+{}];", any(dice, "r"), dice.roll(4) * 8),
        2 => format!(
            "st.local.b32 [own+{}], {r};\nld.local.b32 {}, [own+{}];",
            dice.roll(4) * 4,
            any(dice, "r"),
            dice.roll(4) * 4
        ),
        3 => format!("red.global.{} [%sums+{}], {};", "add.u32", dice.roll(4) * 4, given(dice, "r")),
        4 => format!(
            "st.shared.u32 [%mine], {r};\nbar.sync 0;\nld.shared.u32 {}, [%next];\nbar.sync 0;",
            any(dice, "r")
        ),
        5 => {
            let way = dice.pick(&["up", "down", "bfly", "idx"]);
            let clamp = if way == "up" { 0 } else { 31 };
            format!(
                "shfl.sync.{way}.b32 {r}|{p}, {}, {}, {clamp}, 0xffffffff;",
                any(dice, "r"),
                dice.roll(32)
            )
        }
        6 => format!("vote.sync.{} {}, {p}, 0xffffffff;", "ballot.b32", r),
        7 => format!("@{}{p} {}", dice.pick(&["", "!"]), reckons(dice).lines().next().unwrap_or_default()),
        8 | 9 => {
            // Threads part here, so nothing inside waits for others.
            let inside: Vec<_> = (0..3).map(|_| reckons(dice)).collect();
            let other: Vec<_> = (0..2).map(|_| reckons(dice)).collect();
            format!(
                "@{p} bra {name}_else;\n{}\nbra {name}_end;\n{name}_else:\n{}\n{name}_end:",
                inside.join("\n"),
                other.join("\n")
            )
        }
        _ => {
            let inside: Vec<_> = (0..3).map(|one| step(dice, &format!("{name}_{one}"), depth - 1)).collect();
            let count = dice.roll(4) + 1;
            format!(
                "mov.u32 %n{depth}, 0;\n{name}_loop:\n{}\nadd.u32 %n{depth}, %n{depth}, 1;\nsetp.lt.u32 %more, %n{depth}, {count};\n\
                 @%more bra {name}_loop;\nmov.u64 {d}, %clear;",
                inside.join("\n")
            )
        }
    }
}

fn step(dice: &mut Dice, name: &str, depth: usize) -> String {
    if dice.roll(4) == 0 { does(dice, name, depth) } else { reckons(dice) }
}

/// A kernel whose threads load their registers, do some thirty things and store what came of it.
fn kernel(seed: u64) -> String {
    let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    for _ in 0..8 {
        dice.roll(2);
    }
    let mut text = String::from(
        ".version 7.0\n.target sm_75\n.address_size 64\n.visible .entry any(.param .u64 in, .param .u64 out, .param .u64 sums)\n{\n\
         .reg .pred %p<6>; .reg .pred %more; .reg .b16 %h<6>; .reg .b32 %r<6>; .reg .b32 %n<4>; .reg .b64 %d<6>;\n\
         .reg .f32 %f<6>; .reg .f64 %g<6>; .reg .b64 %in; .reg .b64 %out; .reg .b64 %sums; .reg .b64 %clear;\n\
         .reg .b32 %mine; .reg .b32 %next; .reg .b32 %t; .reg .b32 %u; .reg .b64 %w;\n\
         .shared .align 8 .b8 all[256]; .local .align 8 .b8 own[32];\n\
         ld.param.u64 %in, [in];\nld.param.u64 %out, [out];\nld.param.u64 %sums, [sums];\nmov.u64 %clear, 0x123456789abcdef;\n\
         mov.u32 %t, %tid.x;\nmov.u32 %u, %ctaid.x;\nmov.u32 %mine, %ntid.x;\nmad.lo.u32 %u, %u, %mine, %t;\n\
         mul.wide.u32 %w, %u, 64;\nadd.u64 %in, %in, %w;\nmul.wide.u32 %w, %u, 256;\nadd.u64 %out, %out, %w;\n\
         add.u32 %next, %t, 1;\nrem.u32 %next, %next, %mine;\nmov.u32 %mine, all;\nmad.lo.u32 %next, %next, 4, %mine;\n\
         mad.lo.u32 %mine, %t, 4, %mine;\nst.shared.u32 [%mine], %t;\nbar.sync 0;\n",
    );
    for at in 0..REGISTERS {
        let near = at * 8;
        _ = writeln!(text, "ld.global.u32 %r{at}, [%in+{near}];\nld.global.u64 %d{at}, [%in+{near}];");
        _ = writeln!(text, "ld.global.f32 %f{at}, [%in+{}];\nld.global.f64 %g{at}, [%in+{near}];", near + 4);
        _ = writeln!(text, "ld.global.u16 %h{at}, [%in+{}];\nsetp.lt.s32 %p{at}, %r{at}, 0;", near + 2);
    }
    for at in 0..30 {
        _ = writeln!(text, "{}", step(&mut dice, &format!("L{at}"), 2));
    }
    for at in 0..REGISTERS {
        _ = writeln!(
            text,
            "st.global.u32 [%out+{}], %r{at};\nst.global.u64 [%out+{}], %d{at};",
            at * 4,
            32 + at * 8
        );
        _ = writeln!(
            text,
            "st.global.f32 [%out+{}], %f{at};\nst.global.f64 [%out+{}], %g{at};",
            80 + at * 4,
            104 + at * 8
        );
        _ = writeln!(text, "st.global.u16 [%out+{}], %h{at};", 152 + at * 2);
        _ = writeln!(text, "selp.u32 %t, 1, 0, %p{at};\nst.global.u32 [%out+{}], %t;", 164 + at * 4);
    }
    text + "ret;\n}\n"
}

/// Numbers of all sizes, floats that are none, infinite or tiny, and noise.
fn input() -> Vec<u8> {
    let special: [u64; 12] = [
        0,
        u64::MAX,
        1 << 63,
        0x7FFF_FFFF_8000_0000,
        0x3F80_0000_BF80_0000,
        0x7F80_0000_FF80_0000,
        0x7FC0_1234_7FA0_0001,
        0x0000_0001_8000_0001,
        0x7FF0_0000_0000_0000,
        0x7FF8_0000_0000_0007,
        0x3FF0_0000_0000_0000,
        0x4F00_0000_CF00_0001,
    ];
    let mut dice = Dice(7);
    let words = (0..u64::from(THREADS) * 3 * 8).map(|_| match dice.roll(2) {
        0 => special[dice.roll(special.len())],
        _ => (dice.roll(1 << 31) as u64) << 32 | dice.roll(1 << 31) as u64,
    });
    words.flat_map(u64::to_le_bytes).collect()
}

#[test]
fn engines_agree_on_kernels_made_by_chance() {
    let mut compiled = 0;
    for seed in 0..40 {
        let text = kernel(seed);
        let module = ptx::load(&text).unwrap_or_else(|error| panic!("seed {seed}: {error}\n{text}"));
        let code = &module.kernels[0];
        let entry = native::compile(code).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        let parameters = (0..3).flat_map(|buffer| run::address_of(buffer).to_le_bytes()).collect();
        let launch = run::Launch {
            grid: [3, 1, 1],
            block: [32 * (1 + seed as u32 % 2), 1, 1],
            dynamic_shared_bytes: 0,
            parameters,
        };
        let threads = (launch.block[0] * 3) as usize;
        let buffers =
            || vec![input().repeat(2)[..threads * 64].to_vec(), vec![0; threads * 256], vec![0; 16]];
        let (mut slow, mut fast) = (buffers(), buffers());
        let expected = run::launch(code, &launch, &mut slow, &mut |_| false);
        let found = run::launch_as(code, Some(&entry), &launch, &mut fast, &mut |_| false);
        assert_eq!(expected, found, "seed {seed}\n{text}");
        if let Some(at) = (0..slow[1].len()).find(|at| slow[1][*at] != fast[1][*at]) {
            panic!("seed {seed}: byte {} of thread {}'s results differs\n{text}", at % 256, at / 256);
        }
        assert!(slow == fast, "seed {seed}: sums differ\n{text}");
        compiled += usize::from(expected.is_ok());
    }
    assert!(compiled > 30, "{compiled} of 40 ran to their end");
}

fn of(body: &str) -> ptx::code::Module {
    ptx::load(&text_of(body)).unwrap()
}

fn text_of(body: &str) -> String {
    format!(
        ".version 7.0\n.target sm_75\n.address_size 64\n.visible .entry one(.param .u64 out)\n{{\n.reg .b64 %d<4>; .reg .b32 %r<4>; \
         .reg .f32 %f<4>; .reg .pred %p;\nld.param.u64 %d1, [out];\n{body}\nret;\n}}\n"
    )
}

/// Between two barriers the engines run threads in different orders: where that could show, only one of them does.
#[test]
fn kernels_whose_order_shows_are_not_compiled() {
    for (body, why) in [
        ("ld.volatile.global.u32 %r1, [%d1];", "talk through memory"),
        ("ld.acquire.gpu.global.u32 %r1, [%d1];", "talk through memory"),
        (
            "red.global.add.u32 [%d1], 1;\natom.global.add.u32 %r1, [%d1], 1;\nst.global.u32 [%d1+4], %r1;",
            "order",
        ),
        ("L:\natom.global.add.u32 %r1, [%d1], 1;\nsetp.lt.u32 %p, %r1, 9;\n@%p bra L;", "order"),
        ("red.global.add.u32 [%d1], 1;\nred.global.max.u32 [%d1], 7;", "order"),
        ("L:\nred.global.add.f32 [%d1], %f1;\nsetp.lt.u32 %p, %r1, 9;\n@%p bra L;", "order"),
    ] {
        let refused = native::compile(&of(body).kernels[0]).unwrap_err();
        assert!(refused.contains(why) && refused.contains("line "), "{body}: {refused}");
        assert!(native::depends_on_order(&of(body).kernels[0]), "{body}");
    }
    // A card may take its threads in any order: what an atomic finds need not be what it finds here.
    for (body, is_exact) in [
        ("atom.global.add.u32 %r1, [%d1], 1;\nst.global.u32 [%d1+4], %r1;", false),
        ("atom.global.exch.b32 %r1, [%d1], 1;", false),
        ("atom.global.add.u32 %r1, [%d1], 1;", true),
        ("L:\nred.global.add.u32 [%d1], 1;\nadd.u32 %r1, %r1, 1;\nsetp.lt.u32 %p, %r1, 9;\n@%p bra L;", true),
    ] {
        native::compile(&of(body).kernels[0]).unwrap();
        assert_eq!(module::is_exact(&text_of(body), ["one"].into_iter()), is_exact, "{body}");
    }
}

/// Accesses that are held against a buffer together are found wrong one by one.
#[test]
fn the_wrong_one_of_a_span_is_named() {
    let module = of("ld.global.u32 %r1, [%d1];\nst.global.u32 [%d1+60], %r1;\nst.global.u32 [%d1+64], %r1;");
    let code = &module.kernels[0];
    let entry = native::compile(code).unwrap();
    let parameters = run::address_of(0).to_le_bytes().to_vec();
    let launch = run::Launch { grid: [1; 3], block: [1; 3], dynamic_shared_bytes: 0, parameters };
    for (bytes, is_right) in [(68, true), (64, false), (0, false)] {
        let by = |native| run::launch_as(code, native, &launch, &mut vec![vec![0; bytes]], &mut |_| false);
        let (slow, fast) = (by(None), by(Some(&entry)));
        assert_eq!(slow, fast);
        assert_eq!(slow.is_ok(), is_right, "{bytes}: {slow:?}");
    }
}

/// PTX ISA, "Operand Size Exceeding Instruction-Type Size": a register wider than what it is given is filled, with the sign of a signed
/// type and with zeros for an unsigned one. `cvt.s16.u32` into 32 bits "first chops to 16-bit, then sign-extends to 32-bit".
#[test]
fn narrow_results_fill_their_registers() {
    let wide = |value: i64| value as u64;
    let cases: [(&str, u32, u64); 14] = [
        ("cvt.s16.u32 %r2, %r1", 0x0001_8000, 0xFFFF_8000),
        ("cvt.s16.s32 %r2, %r1", 0x0001_7FFF, 0x7FFF),
        ("cvt.u16.s32 %r2, %r1", 0xFFFF_8000, 0x8000),
        ("cvt.s8.u32 %r2, %r1", 0x0000_0180, 0xFFFF_FF80),
        ("cvt.s8.s32 %r2, %r1", 0xFFFF_FF7F, 0x7F),
        ("cvt.u8.s32 %r2, %r1", 0xFFFF_FF80, 0x80),
        ("cvt.sat.s8.s32 %r2, %r1", 0xFFFF_0000, 0xFFFF_FF80),
        ("cvt.s16.u32 %d2, %r1", 0x8000, wide(-0x8000)),
        ("cvt.s8.u32 %d2, %r1", 0xFF, wide(-1)),
        ("cvt.s32.u32 %d2, %r1", 0x8000_0000, wide(-0x8000_0000)),
        ("cvt.u32.s32 %d2, %r1", 0x8000_0000, 0x8000_0000),
        ("mov.b32 %f1, %r1;\ncvt.rzi.s16.f32 %r2, %f1", (-2.5f32).to_bits(), 0xFFFF_FFFE),
        ("mov.b32 %f1, %r1;\ncvt.rzi.s32.f32 %d2, %f1", (-2.5f32).to_bits(), wide(-2)),
        ("mov.b32 %f1, %r1;\ncvt.rzi.u32.f32 %d2, %f1", 4e9f32.to_bits(), 4_000_000_000),
    ];
    for (body, given, expected) in cases {
        let kept =
            if body.contains("%d2") { "st.global.u64 [%d1], %d2;" } else { "st.global.u32 [%d1], %r2;" };
        let module = of(&format!("ld.global.u32 %r1, [%d1];\n{body};\n{kept}"));
        both(&module.kernels[0], u64::from(given), |found| {
            let found = if body.contains("%d2") { found } else { found & 0xFFFF_FFFF };
            assert_eq!(found, expected, "{body} of {given:#x}: {found:#x}");
        });
    }
    // What fills a register is none of an operation's that is as wide as its type.
    let module = of("ld.global.u32 %r1, [%d1];\ncvt.s32.u32 %r1, %r1;\natom.global.inc.u32 %r2, [%d1], %r1;");
    both(&module.kernels[0], 0xFFFF_FFFE, |found| assert_eq!(found, 0));
}

/// Runs a kernel of one thread by both engines, on eight bytes.
fn both(code: &ptx::code::Code, given: u64, check: impl Fn(u64)) {
    let entry = native::compile(code).unwrap();
    let parameters = run::address_of(0).to_le_bytes().to_vec();
    let launch = run::Launch { grid: [1; 3], block: [1; 3], dynamic_shared_bytes: 0, parameters };
    for native in [None, Some(&entry)] {
        let mut buffers = vec![given.to_le_bytes().to_vec()];
        run::launch_as(code, native, &launch, &mut buffers, &mut |_| false).unwrap();
        check(u64::from_le_bytes(buffers[0][..].try_into().unwrap()));
    }
}
