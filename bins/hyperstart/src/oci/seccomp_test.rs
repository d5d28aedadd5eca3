//! The compiled program, run by a small interpreter, against the profile read rule by rule.

use serde_json::json;

use super::*;

/// Runs `program` on one call; `seccomp_data` as in `<linux/seccomp.h>`.
fn run(program: &[sock_filter], arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let load = |offset: u32| match offset {
        NUMBER => number,
        ARCH => arch,
        offset => {
            let value = arguments[((offset - ARGUMENTS) / 8) as usize];
            if offset % 8 == 0 { value as u32 } else { (value >> 32) as u32 }
        }
    };
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let instruction = program[at];
        let k = instruction.k;
        at += 1;
        let jump = |holds: bool| usize::from(if holds { instruction.jt } else { instruction.jf });
        match instruction.code {
            LOAD => accumulator = load(k),
            AND => accumulator &= k,
            JUMP => at += k as usize,
            JUMP_EQUAL => at += jump(accumulator == k),
            JUMP_GREATER => at += jump(accumulator > k),
            JUMP_GREATER_EQUAL => at += jump(accumulator >= k),
            RETURN => return k,
            code => panic!("code {code:#x} at {}", at - 1),
        }
    }
}

fn compile(profile: serde_json::Value) -> Vec<sock_filter> {
    Filter::compile(&serde_json::from_value(profile).unwrap()).unwrap().program
}

const ALLOW: u32 = 0x7fff_0000;
const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;

fn number(arch: Arch, name: &str) -> u32 {
    arch.calls().find(|(_, known)| *known == name).unwrap().0
}

#[test]
fn every_call_gets_what_the_profile_says() {
    let allowed = ["read", "write", "exit_group", "openat", "clone", "futex_waitv", "socketcall"];
    let program = compile(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": [
            {"names": allowed, "action": "SCMP_ACT_ALLOW"},
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
            {"names": ["no_such_call"], "action": "SCMP_ACT_ALLOW"},
        ],
    }));
    for (arch, audit) in [(Arch::X86_64, X86_64), (Arch::I386, I386)] {
        let last = number(arch, "futex_waitv");
        let names: BTreeMap<u32, &str> = arch.calls().collect();
        for call in (0..600).chain([X32 - 1, X32, X32 + 1, u32::MAX]) {
            let expected = match names.get(&call) {
                Some(name) if allowed.contains(name) => ALLOW,
                Some(&"clone3") => RET_ERRNO | 38,
                _ if call > last => RET_ERRNO | 38,
                _ => RET_ERRNO | 1,
            };
            assert_eq!(run(&program, audit, call, [0; 6]), expected, "{arch:?} {call}");
        }
    }
    assert_eq!(run(&program, 0xc000_00b7, 0, [0; 6]), RET_KILL_PROCESS);
    let native = compile(json!({"defaultAction": "SCMP_ACT_ALLOW"}));
    assert_eq!(run(&native, X86_64, 1, [0; 6]), ALLOW);
    assert_eq!(run(&native, X86_64, X32 + 1, [0; 6]), RET_ERRNO | 38);
    assert_eq!(run(&native, I386, 1, [0; 6]), RET_KILL_PROCESS);
}

#[test]
fn arguments_are_compared_in_all_their_bits() {
    let values = [0, 1, 2, 0x7f, 0xffff_ffff, 1 << 32, (1 << 32) | 1, (2 << 32) | 1, u64::MAX];
    for op in ["EQ", "NE", "LT", "LE", "GE", "GT", "MASKED_EQ"] {
        for value in values {
            for two in [0, 1, 1 << 32] {
                let program = compile(json!({
                    "defaultAction": "SCMP_ACT_KILL",
                    "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [
                        {"index": 3, "value": value, "valueTwo": two, "op": format!("SCMP_CMP_{op}")}
                    ]}],
                }));
                for argument in values {
                    let holds = match op {
                        "EQ" => argument == value,
                        "NE" => argument != value,
                        "LT" => argument < value,
                        "LE" => argument <= value,
                        "GE" => argument >= value,
                        "GT" => argument > value,
                        _ => argument & value == two & value,
                    };
                    let result = run(&program, X86_64, 0, [9, 9, 9, argument, 9, 9]);
                    assert_eq!(
                        result,
                        if holds { ALLOW } else { 0 },
                        "{argument:#x} {op} {value:#x} {two:#x}"
                    );
                }
            }
        }
    }
}

#[test]
fn rules_of_one_call_are_alternatives_and_conditions_of_one_rule_are_not() {
    let both = json!([
        {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 1, "value": 2, "op": "SCMP_CMP_EQ"},
    ]);
    let either = json!([
        {"index": 0, "value": 7, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 8, "op": "SCMP_CMP_EQ"},
    ]);
    let program = compile(json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 13,
        "syscalls": [
            {"names": ["write"], "action": "SCMP_ACT_ALLOW", "args": both},
            {"names": ["write"], "action": "SCMP_ACT_LOG", "args": either},
        ],
    }));
    for (first, second, expected) in [
        (1, 2, ALLOW),
        (1, 3, RET_ERRNO | 13),
        (7, 0, 0x7ffc_0000),
        (8, 0, 0x7ffc_0000),
        (9, 2, RET_ERRNO | 13),
    ] {
        assert_eq!(run(&program, X86_64, 1, [first, second, 0, 0, 0, 0]), expected);
    }
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    for (profile, name) in [
        (json!({"defaultAction": "SCMP_ACT_NOTIFY"}), "SCMP_ACT_NOTIFY"),
        (json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["FLAG_X"]}), "FLAG_X"),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"],
                "action": "SCMP_ACT_KILL", "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}]}),
            "argument 6",
        ),
    ] {
        let error = Filter::compile(&serde_json::from_value(profile).unwrap()).unwrap_err();
        assert!(error.message.contains(name), "{}", error.message);
    }
}
