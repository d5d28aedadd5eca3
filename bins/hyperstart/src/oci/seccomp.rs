//! `linux.seccomp` to a classic BPF program.
//!
//! A system call finds its rule by a binary search over ranges of numbers that share a decision:
//! about ten instructions, where a list of comparisons takes hundreds; user-mode Linux interprets
//! them. One search per instruction set:
//!
//! ```text
//!  arch? ── x86-64 ── search ── decision ── arguments? ── action
//!       └── i386   ── search ── …
//!       └── other  ── kill
//! ```
//!
//! As with runc, a call newer than all the profile names gets `ENOSYS` rather than a denial, so
//! that C libraries fall back to the older call.

use std::collections::BTreeMap;

use libc::sock_filter;

use super::{
    spec::{ArgumentRule, Seccomp, SyscallRule},
    syscalls::Arch,
};
use crate::failure::{Doing as _, Outcome, invalid, unsupported};

const RET_KILL_PROCESS: u32 = 0x8000_0000;
const RET_ERRNO: u32 = 0x0005_0000;
/// Numbers from here on are x32 calls, which no kernel of ours has.
const X32: u32 = 0x4000_0000;
/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;
/// Longest program the kernel takes, `BPF_MAXINSNS`.
const MAX_PROGRAM: usize = 4096;

const LOAD: u16 = 0x20;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_EQUAL: u16 = 0x35;
const AND: u16 = 0x54;
const RETURN: u16 = 0x06;

/// A filter ready to be loaded.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    program: Vec<sock_filter>,
    flags: u64,
}

impl Filter {
    /// # Errors
    /// Unknown words, or actions that need a second process to answer.
    pub(crate) fn compile(profile: &Seccomp) -> Outcome<Self> {
        let default = action(&profile.default_action, profile.default_errno_ret)?;
        let mut flags = 0;
        for flag in &profile.flags {
            flags |= match flag.as_str() {
                // One thread: there is nobody to synchronise with.
                "SECCOMP_FILTER_FLAG_TSYNC" => 0,
                "SECCOMP_FILTER_FLAG_LOG" => libc::SECCOMP_FILTER_FLAG_LOG,
                "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
                other => return Err(unsupported(format!("seccomp.flags: {other}"))),
            };
        }
        let mut program = vec![load(ARCH)];
        for arch in [Arch::X86_64, Arch::I386] {
            if arch == Arch::I386 && !profile.architectures.iter().any(|a| a == "SCMP_ARCH_X86") {
                continue;
            }
            let search = search(&decisions(arch, default, &profile.syscalls)?);
            program.push(jump(JUMP_EQUAL, arch.audit(), 1, 0));
            program.push(jump_over(search.len() + 1));
            program.push(load(NUMBER));
            program.extend(search);
        }
        program.push(ret(RET_KILL_PROCESS));
        if program.len() > MAX_PROGRAM {
            return Err(unsupported(format!(
                "seccomp: the profile makes {} instructions, more than {MAX_PROGRAM}",
                program.len()
            )));
        }
        Ok(Self { program, flags })
    }

    /// Puts this process under the filter.
    ///
    /// # Errors
    /// Without CAP_SYS_ADMIN and without no_new_privs.
    pub(crate) fn load(&self) -> Outcome<()> {
        crate::sys::set_seccomp_filter(&self.program, self.flags)
            .doing(|| "load the seccomp filter".to_owned())
    }
}

/// What happens to one call: rules tried in turn, then a fallback.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Decision {
    conditional: Vec<(Vec<Condition>, u32)>,
    otherwise: u32,
}

/// A comparison of one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Condition {
    argument: u32,
    operator: Operator,
    value: u64,
    mask: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Equal,
    Less,
    Greater,
    Not(&'static Operator),
}

fn action(name: &str, errno: Option<u16>) -> Outcome<u32> {
    let data = u32::from(errno.unwrap_or(libc::EPERM as u16));
    Ok(match name {
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => 0,
        "SCMP_ACT_KILL_PROCESS" => RET_KILL_PROCESS,
        "SCMP_ACT_TRAP" => 0x0003_0000,
        "SCMP_ACT_ERRNO" => RET_ERRNO | data,
        "SCMP_ACT_TRACE" => 0x7ff0_0000 | data,
        "SCMP_ACT_LOG" => 0x7ffc_0000,
        "SCMP_ACT_ALLOW" => 0x7fff_0000,
        other => return Err(unsupported(format!("seccomp action {other}"))),
    })
}

fn condition(rule: &ArgumentRule) -> Outcome<Condition> {
    if rule.index > 5 {
        return Err(invalid(format!("seccomp: a call has no argument {}", rule.index)));
    }
    let (operator, value, mask) = match rule.op.as_str() {
        "SCMP_CMP_EQ" => (Operator::Equal, rule.value, u64::MAX),
        "SCMP_CMP_NE" => (Operator::Not(&Operator::Equal), rule.value, u64::MAX),
        "SCMP_CMP_LT" => (Operator::Less, rule.value, u64::MAX),
        "SCMP_CMP_GE" => (Operator::Not(&Operator::Less), rule.value, u64::MAX),
        "SCMP_CMP_GT" => (Operator::Greater, rule.value, u64::MAX),
        "SCMP_CMP_LE" => (Operator::Not(&Operator::Greater), rule.value, u64::MAX),
        "SCMP_CMP_MASKED_EQ" => (Operator::Equal, rule.value_two & rule.value, rule.value),
        other => return Err(invalid(format!("seccomp: operator {other} is unknown"))),
    };
    Ok(Condition { argument: rule.index, operator, value, mask })
}

/// The decision for every number, as the first numbers of ranges that share one.
fn decisions(arch: Arch, default: u32, rules: &[SyscallRule]) -> Outcome<Vec<(u32, Decision)>> {
    let fallback = Decision { conditional: Vec::new(), otherwise: default };
    let numbers: BTreeMap<&str, u32> = arch.calls().map(|(number, name)| (name, number)).collect();
    let mut calls: BTreeMap<u32, Decision> = BTreeMap::new();
    for rule in rules {
        let action = action(&rule.action, rule.errno_ret)?;
        let conditions: Vec<_> = rule.args.iter().map(condition).collect::<Outcome<_>>()?;
        // Names of other instruction sets or of newer kernels are no mistake.
        for number in rule.names.iter().filter_map(|name| numbers.get(name.as_str())) {
            let call = calls.entry(*number).or_insert_with(|| fallback.clone());
            if conditions.is_empty() {
                call.otherwise = action;
            } else if repeats_an_argument(&conditions) {
                // Alternatives, as runc has it.
                call.conditional.extend(conditions.iter().map(|one| (vec![*one], action)));
            } else {
                call.conditional.push((conditions.clone(), action));
            }
        }
    }
    let unknown = if default & 0xffff_0000 == RET_ERRNO {
        Decision { conditional: Vec::new(), otherwise: RET_ERRNO | libc::ENOSYS as u32 }
    } else {
        fallback.clone()
    };
    let absent = Decision { conditional: Vec::new(), otherwise: RET_ERRNO | libc::ENOSYS as u32 };
    let end = calls.last_key_value().map_or(0, |(number, _)| number + 1);
    let mut ranges: Vec<(u32, Decision)> = Vec::new();
    let mut push = |start: u32, decision: &Decision| {
        if ranges.last().is_none_or(|(_, last)| last != decision) {
            ranges.push((start, decision.clone()));
        }
    };
    for number in 0..end {
        push(number, calls.get(&number).unwrap_or(&fallback));
    }
    push(end, &unknown);
    push(X32, &absent);
    Ok(ranges)
}

fn repeats_an_argument(conditions: &[Condition]) -> bool {
    let mut seen = 0u8;
    conditions.iter().any(|condition| {
        let bit = 1 << condition.argument;
        let repeated = seen & bit != 0;
        seen |= bit;
        repeated
    })
}

fn load(offset: u32) -> sock_filter {
    sock_filter { code: LOAD, jt: 0, jf: 0, k: offset }
}

fn ret(value: u32) -> sock_filter {
    sock_filter { code: RETURN, jt: 0, jf: 0, k: value }
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

fn jump_over(instructions: usize) -> sock_filter {
    sock_filter { code: JUMP, jt: 0, jf: 0, k: u32::try_from(instructions).unwrap_or(u32::MAX) }
}

/// Code that finds the number's range and returns its action.
fn search(ranges: &[(u32, Decision)]) -> Vec<sock_filter> {
    let (left, right) = match ranges {
        [] => return vec![ret(RET_KILL_PROCESS)],
        [(_, decision)] => return decide(decision),
        _ => ranges.split_at(ranges.len() / 2),
    };
    let middle = right.first().map_or(0, |(start, _)| *start);
    let (left, right) = (search(left), search(right));
    let mut code = Vec::with_capacity(2 + left.len() + right.len());
    if let Ok(distance) = u8::try_from(left.len()) {
        code.push(jump(JUMP_GREATER_EQUAL, middle, distance, 0));
    } else {
        code.push(jump(JUMP_GREATER_EQUAL, middle, 0, 1));
        code.push(jump_over(left.len()));
    }
    code.extend(left);
    code.extend(right);
    code
}

fn decide(decision: &Decision) -> Vec<sock_filter> {
    let mut code = Vec::new();
    for (conditions, action) in &decision.conditional {
        let mut rule = vec![ret(*action)];
        for condition in conditions.iter().rev() {
            rule = compare(*condition, rule);
        }
        code.extend(rule);
    }
    code.push(ret(decision.otherwise));
    code
}

/// Code that goes on with `then` if the condition holds, and otherwise past its end.
fn compare(condition: Condition, then: Vec<sock_filter>) -> Vec<sock_filter> {
    /// Where a comparison goes on.
    const FAIL: u8 = u8::MAX;
    const HOLD: u8 = u8::MAX - 1;
    let (operator, negated) = match condition.operator {
        Operator::Not(inner) => (*inner, true),
        operator => (operator, false),
    };
    let half = |value: u64| (value & 0xffff_ffff) as u32;
    let (high, low) = (half(condition.value >> 32), half(condition.value));
    let at = ARGUMENTS + 8 * condition.argument;
    let mut code = vec![load(at + 4)];
    let mask = |code: &mut Vec<sock_filter>, mask: u32| {
        if mask != u32::MAX {
            code.push(sock_filter { code: AND, jt: 0, jf: 0, k: mask });
        }
    };
    mask(&mut code, half(condition.mask >> 32));
    match operator {
        Operator::Less => {
            code.push(jump(JUMP_GREATER, high, FAIL, 0));
            code.push(jump(JUMP_EQUAL, high, 0, HOLD));
        }
        Operator::Greater => {
            code.push(jump(JUMP_GREATER, high, HOLD, 0));
            code.push(jump(JUMP_EQUAL, high, 0, FAIL));
        }
        Operator::Equal | Operator::Not(_) => code.push(jump(JUMP_EQUAL, high, 0, FAIL)),
    }
    code.push(load(at));
    mask(&mut code, half(condition.mask));
    code.push(match operator {
        Operator::Less => jump(JUMP_GREATER_EQUAL, low, FAIL, HOLD),
        Operator::Greater => jump(JUMP_GREATER, low, HOLD, FAIL),
        Operator::Equal | Operator::Not(_) => jump(JUMP_EQUAL, low, HOLD, FAIL),
    });
    // Two landings, so that the distances above stay short: one goes on, one jumps past `then`.
    let landing = code.len();
    for (index, instruction) in code.iter_mut().enumerate() {
        let past = u8::try_from(landing - index - 1).unwrap_or(0);
        for target in [&mut instruction.jt, &mut instruction.jf] {
            match *target {
                HOLD => *target = if negated { past } else { past + 1 },
                FAIL => *target = if negated { past + 1 } else { past },
                _ => {}
            }
        }
    }
    code.push(jump_over(then.len()));
    code.extend(then);
    code
}

#[cfg(test)]
#[path = "seccomp_test.rs"]
mod tests;
