//! The system call filter: an allow list with its reasons, compiled to the kernel's classic BPF.
//!
//! What is on the list passes. What is known to be harmful answers `EPERM`, as to an ordinary user. What is unknown
//! answers `ENOSYS`, so that a C library newer than this list falls back to what it did before. Another architecture's
//! calls end the process.

use std::io;

use super::sys;
use super::syscalls::{ALLOWED, FORBIDDEN};

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xC000_00B7;

/// Offsets in `struct seccomp_data`.
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;
const ARGUMENTS_AT: u32 = 16;

const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;
const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const REFUSE: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const UNKNOWN: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
const NO_FAMILY: u32 = libc::SECCOMP_RET_ERRNO | libc::EAFNOSUPPORT as u32;

/// Namespaces that `clone` may not make: a user namespace would give back capabilities inside it.
const NEW_NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP) as u32;
/// Sockets that a task may have; all others are ways into parts of the kernel that few look after.
const SOCKET_FAMILIES: [i32; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
/// Typing into a terminal, and the console's own tricks.
const FORBIDDEN_IOCTLS: [u32; 3] = [0x5412, 0x541C, 0x5410];
/// `personality` values that change nothing that matters: Linux, and the same without address randomisation asked.
const PERSONALITIES: [u32; 2] = [0, 0xFFFF_FFFF];

/// Puts this process and all it starts behind the filter, for ever. Needs `no_new_privs` or a capability.
///
/// # Errors
/// When the kernel has no filters.
pub fn confine() -> io::Result<()> {
    sys::set_filter(&program())
}

fn load(offset: u32) -> libc::sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset)
}

fn answer(action: u32) -> libc::sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, action)
}

/// Skips `then` instructions when the condition holds, `otherwise` when not.
fn jump(condition: u32, value: u32, then: u8, otherwise: u8) -> libc::sock_filter {
    instruction(libc::BPF_JMP | condition | libc::BPF_K, then, otherwise, value)
}

fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

fn program() -> Vec<libc::sock_filter> {
    let mut actions: Vec<(u32, u32)> = ALLOWED.iter().map(|(number, _)| (*number as u32, ALLOW)).collect();
    actions.extend(FORBIDDEN.iter().map(|(number, _)| (*number as u32, REFUSE)));
    actions.sort_unstable();
    let mut program = vec![load(ARCHITECTURE_AT), jump(libc::BPF_JEQ, ARCHITECTURE, 1, 0), answer(KILL)];
    for (number, check) in argument_checks() {
        program.push(load(NUMBER_AT));
        program.push(jump(libc::BPF_JEQ, number, 0, u8::try_from(check.len()).unwrap_or(u8::MAX)));
        program.extend(check);
    }
    program.push(load(NUMBER_AT));
    search(&actions, &mut program);
    program
}

/// Calls whose arguments decide. Each check ends in an answer on every path.
fn argument_checks() -> Vec<(u32, Vec<libc::sock_filter>)> {
    let argument = |index: u32| load(ARGUMENTS_AT + 8 * index);
    let one_of = |values: &[u32], index: u32, inside: u32, outside: u32| {
        let mut check = vec![argument(index)];
        for value in values {
            check.extend([jump(libc::BPF_JEQ, *value, 0, 1), answer(inside)]);
        }
        check.push(answer(outside));
        check
    };
    let families = SOCKET_FAMILIES.map(|family| family as u32);
    let flags = vec![argument(0), jump(libc::BPF_JSET, NEW_NAMESPACES, 0, 1), answer(REFUSE), answer(ALLOW)];
    // The flags of clone3 lie in memory, where a filter cannot look: the C library then takes clone.
    let clone3 = vec![answer(UNKNOWN)];
    vec![
        (libc::SYS_clone as u32, flags),
        (libc::SYS_clone3 as u32, clone3),
        (libc::SYS_socket as u32, one_of(&families, 0, ALLOW, NO_FAMILY)),
        (libc::SYS_socketpair as u32, one_of(&families, 0, ALLOW, NO_FAMILY)),
        (libc::SYS_ioctl as u32, one_of(&FORBIDDEN_IOCTLS, 1, REFUSE, ALLOW)),
        (libc::SYS_personality as u32, one_of(&PERSONALITIES, 0, ALLOW, REFUSE)),
    ]
}

/// A binary search over the sorted numbers, so that the most frequent call costs nine comparisons, not three hundred.
fn search(actions: &[(u32, u32)], program: &mut Vec<libc::sock_filter>) {
    if let [(number, action)] = actions {
        program.extend([jump(libc::BPF_JEQ, *number, 0, 1), answer(*action), answer(UNKNOWN)]);
        return;
    }
    let (low, high) = actions.split_at(actions.len() / 2);
    let Some((first, _)) = high.first() else { return program.push(answer(UNKNOWN)) };
    let mut below = Vec::new();
    search(low, &mut below);
    // A conditional jump reaches 255 instructions; an unconditional one any number.
    program.push(jump(libc::BPF_JGE, *first, 0, 1));
    program.push(instruction(libc::BPF_JMP | libc::BPF_JA, 0, 0, below.len() as u32));
    program.extend(below);
    search(high, program);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// A reading of BPF that shares nothing with what builds it.
    fn run(program: &[libc::sock_filter], architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let mut data = [0u32; 16];
        (data[0], data[1]) = (number, architecture);
        for (index, argument) in arguments.iter().enumerate() {
            (data[4 + 2 * index], data[5 + 2 * index]) = (*argument as u32, (*argument >> 32) as u32);
        }
        let (mut at, mut a) = (0, 0);
        loop {
            let one = &program[at];
            at += 1;
            match one.code {
                0x20 => a = data[one.k as usize / 4],
                0x06 => return one.k,
                0x05 => at += one.k as usize,
                0x15 => at += usize::from(if a == one.k { one.jt } else { one.jf }),
                0x35 => at += usize::from(if a >= one.k { one.jt } else { one.jf }),
                0x45 => at += usize::from(if a & one.k != 0 { one.jt } else { one.jf }),
                code => panic!("code {code:#x}"),
            }
        }
    }

    /// Every number there is gets the answer that the lists give it, whatever the search tree looks like.
    #[test]
    fn every_call_gets_its_answer() {
        let program = program();
        assert!(program.len() < 4096, "the kernel takes no more");
        let mut expected: BTreeMap<u32, u32> = BTreeMap::new();
        for (number, name) in ALLOWED {
            assert!(expected.insert(*number as u32, ALLOW).is_none(), "{name} is listed twice");
        }
        for (number, name) in FORBIDDEN {
            assert!(expected.insert(*number as u32, REFUSE).is_none(), "{name} is listed twice");
        }
        let checked: Vec<_> = argument_checks().iter().map(|(number, _)| *number).collect();
        for number in (0..1024).chain([0x4000_0000, 0x4000_0001, u32::MAX]) {
            if !checked.contains(&number) {
                let wanted = expected.get(&number).copied().unwrap_or(UNKNOWN);
                assert_eq!(run(&program, ARCHITECTURE, number, [0; 6]), wanted, "call {number}");
            }
        }
        assert_eq!(run(&program, 0x4000_0003, 0, [0; 6]), KILL, "32-bit calls");
    }

    #[test]
    fn arguments_decide_where_they_must() {
        let program = program();
        let run = |number: libc::c_long, arguments| run(&program, ARCHITECTURE, number as u32, arguments);
        let thread = (libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND) as u64;
        assert_eq!(run(libc::SYS_clone, [thread, 0, 0, 0, 0, 0]), ALLOW);
        for namespace in [libc::CLONE_NEWUSER, libc::CLONE_NEWNS, libc::CLONE_NEWNET] {
            assert_eq!(run(libc::SYS_clone, [namespace as u64 | thread, 0, 0, 0, 0, 0]), REFUSE);
        }
        assert_eq!(run(libc::SYS_clone3, [0; 6]), UNKNOWN);
        for (family, wanted) in
            [(libc::AF_INET, ALLOW), (libc::AF_PACKET, NO_FAMILY), (libc::AF_ALG, NO_FAMILY)]
        {
            assert_eq!(run(libc::SYS_socket, [family as u64, 0, 0, 0, 0, 0]), wanted);
        }
        assert_eq!(run(libc::SYS_ioctl, [0, libc::TIOCSTI, 0, 0, 0, 0]), REFUSE);
        assert_eq!(run(libc::SYS_ioctl, [0, libc::TIOCGWINSZ, 0, 0, 0, 0]), ALLOW);
        // The kernel looks at the low 32 bits of a command alone, so high bits must not hide one.
        assert_eq!(run(libc::SYS_ioctl, [0, libc::TIOCSTI | 1 << 40, 0, 0, 0, 0]), REFUSE);
    }
}
