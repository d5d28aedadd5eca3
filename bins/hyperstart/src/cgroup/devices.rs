//! `linux.resources.devices` to an eBPF program for the cgroup.
//!
//! The last rule that matches decides; nothing matching is a denial. What every container may use
//! by the specification comes after the given rules, as with runc.

use crate::{
    failure::{Outcome, invalid},
    oci::spec::DeviceRule,
    sys::BpfInstruction,
};

/// `BPF_DEVCG_ACC_*` and `BPF_DEVCG_DEV_*` of `<linux/bpf.h>`.
const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;

/// Devices of every container: type, major, minor (`None` is any), access.
const ALWAYS: [(i32, Option<i32>, Option<i32>, i32); 10] = [
    (CHARACTER, None, None, MKNOD),
    (BLOCK, None, None, MKNOD),
    (CHARACTER, Some(1), Some(3), MKNOD | READ | WRITE),
    (CHARACTER, Some(1), Some(5), MKNOD | READ | WRITE),
    (CHARACTER, Some(1), Some(7), MKNOD | READ | WRITE),
    (CHARACTER, Some(1), Some(8), MKNOD | READ | WRITE),
    (CHARACTER, Some(1), Some(9), MKNOD | READ | WRITE),
    (CHARACTER, Some(5), Some(0), MKNOD | READ | WRITE),
    (CHARACTER, Some(5), Some(2), MKNOD | READ | WRITE),
    (CHARACTER, Some(136), None, MKNOD | READ | WRITE),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    allow: bool,
    /// `None` is any.
    kind: Option<i32>,
    major: Option<i32>,
    minor: Option<i32>,
    access: i32,
}

/// # Errors
/// A type or access letter that does not exist.
pub(super) fn compile(rules: &[DeviceRule]) -> Outcome<Vec<BpfInstruction>> {
    let given = rules.iter().map(parse).collect::<Outcome<Vec<_>>>()?;
    let always = ALWAYS.map(|(kind, major, minor, access)| Rule {
        allow: true,
        kind: Some(kind),
        major,
        minor,
        access,
    });
    Ok(generate(given.into_iter().chain(always)))
}

fn parse(rule: &DeviceRule) -> Outcome<Rule> {
    let kind = match rule.kind.as_deref() {
        None | Some("" | "a") => None,
        Some("c" | "u") => Some(CHARACTER),
        Some("b") => Some(BLOCK),
        Some(other) => return Err(invalid(format!("linux.resources.devices: type {other}"))),
    };
    let mut access = 0;
    for letter in rule.access.as_deref().filter(|text| !text.is_empty()).unwrap_or("rwm").chars() {
        access |= match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            _ => return Err(invalid(format!("linux.resources.devices: access {letter}"))),
        };
    }
    let number = |value: Option<i64>| value.and_then(|value| i32::try_from(value).ok());
    Ok(Rule {
        allow: rule.allow,
        kind,
        major: number(rule.major).filter(|major| *major >= 0),
        minor: number(rule.minor).filter(|minor| *minor >= 0),
        access,
    })
}

/// Registers: r2 type, r3 access, r4 major, r5 minor; r1 is the context, then scratch.
fn generate(rules: impl DoubleEndedIterator<Item = Rule>) -> Vec<BpfInstruction> {
    const LOAD_WORD: u8 = 0x61;
    const AND: u8 = 0x54;
    const SHIFT_RIGHT: u8 = 0x74;
    const MOVE: u8 = 0xb4;
    const MOVE_REGISTER: u8 = 0xbc;
    const JUMP_NOT_EQUAL: u8 = 0x55;
    const EXIT: u8 = 0x95;
    let instruction = |code, destination: u8, source: u8, offset, immediate| BpfInstruction {
        code,
        registers: source << 4 | destination,
        offset,
        immediate,
    };
    let mut program = vec![
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(MOVE_REGISTER, 3, 2, 0, 0),
        instruction(AND, 2, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, 3, 0, 0, 16),
        instruction(LOAD_WORD, 4, 1, 4, 0),
        instruction(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules.rev() {
        let mut tests = Vec::new();
        if let Some(kind) = rule.kind {
            tests.push(instruction(JUMP_NOT_EQUAL, 2, 0, 0, kind));
        }
        if rule.access != MKNOD | READ | WRITE {
            let beyond = (MKNOD | READ | WRITE) & !rule.access;
            tests.push(instruction(MOVE_REGISTER, 1, 3, 0, 0));
            tests.push(instruction(AND, 1, 0, 0, beyond));
            tests.push(instruction(JUMP_NOT_EQUAL, 1, 0, 0, 0));
        }
        for (register, number) in [(4, rule.major), (5, rule.minor)] {
            if let Some(number) = number {
                tests.push(instruction(JUMP_NOT_EQUAL, register, 0, 0, number));
            }
        }
        // A test that fails goes on past the two instructions of the decision.
        let len = tests.len();
        for (index, test) in tests.iter_mut().enumerate() {
            if test.code == JUMP_NOT_EQUAL {
                test.offset = i16::try_from(len - index - 1 + 2).unwrap_or(i16::MAX);
            }
        }
        program.extend(tests);
        program.push(instruction(MOVE, 0, 0, 0, i32::from(rule.allow)));
        program.push(instruction(EXIT, 0, 0, 0, 0));
        if rule.kind.is_none() && rule.major.is_none() && rule.minor.is_none() && rule.access == 7 {
            // It matches everything: what comes before it is never reached, which the verifier
            // of the kernel does not accept.
            return program;
        }
    }
    program.push(instruction(MOVE, 0, 0, 0, 0));
    program.push(instruction(EXIT, 0, 0, 0, 0));
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(allow: bool, kind: &str, major: i64, minor: i64, access: &str) -> DeviceRule {
        DeviceRule {
            allow,
            kind: Some(kind.to_owned()),
            major: Some(major),
            minor: Some(minor),
            access: Some(access.to_owned()),
        }
    }

    /// Runs the program on one access.
    fn allows(program: &[BpfInstruction], kind: i32, major: i32, minor: i32, access: i32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0i32; 6];
        let mut at = 0;
        loop {
            let i = program[at];
            at += 1;
            let (to, from) = ((i.registers & 15) as usize, (i.registers >> 4) as usize);
            match i.code {
                0x61 => registers[to] = context[i.offset as usize / 4],
                0x54 => registers[to] &= i.immediate,
                0x74 => registers[to] >>= i.immediate,
                0xb4 => registers[to] = i.immediate,
                0xbc => registers[to] = registers[from],
                0x55 if registers[to] != i.immediate => at += i.offset as usize,
                0x55 => {}
                0x95 => return registers[0] != 0,
                code => panic!("{code:#x}"),
            }
        }
    }

    #[test]
    fn dockers_rules_hold() {
        let rules = [
            rule(true, "c", 9, 9, "rwm"),
            DeviceRule { access: Some("rwm".to_owned()), ..DeviceRule::default() },
            rule(true, "b", 254, 0, "r"),
            rule(true, "c", 10, -1, "rw"),
        ];
        let program = compile(&rules).unwrap();
        assert!(allows(&program, CHARACTER, 1, 3, READ | WRITE));
        assert!(allows(&program, CHARACTER, 136, 77, READ));
        assert!(allows(&program, BLOCK, 254, 0, READ));
        assert!(!allows(&program, BLOCK, 254, 0, READ | WRITE));
        assert!(!allows(&program, BLOCK, 254, 16, READ));
        assert!(allows(&program, BLOCK, 254, 16, MKNOD));
        assert!(allows(&program, CHARACTER, 10, 200, WRITE));
        assert!(!allows(&program, CHARACTER, 9, 9, READ), "denied by the later rule");
        let all = compile(&[rule(true, "a", -1, -1, "rwm")]).unwrap();
        assert!(allows(&all, BLOCK, 254, 16, READ | WRITE | MKNOD));
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(compile(&[rule(true, "x", 1, 1, "r")]).is_err());
        assert!(compile(&[rule(true, "c", 1, 1, "q")]).is_err());
    }
}
