//! The guest: a page of code in long mode, one step per instruction that kernels need.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_sregs, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};

use crate::KvmProblem;

/// The guest's memory, identity-mapped by one large page.
const MEMORY: usize = 2 << 20;
const PML4: usize = 0x1000;
const PDPT: usize = 0x2000;
const DIRECTORY: usize = 0x3000;
const GDT: usize = 0x4000;
const IDT: usize = 0x5000;
const HANDLER: usize = 0x6000;
const CODE: usize = 0x8000;
const STACK: usize = 0x1_0000;
/// Port that a finished step writes its number to.
const PORT: u8 = 0x10;

/// One thing that the guest does. The bytes are machine code; the comments are AT&T syntax.
struct Step {
    name: &'static str,
    code: &'static [u8],
    /// (leaf, index, register 0..=3 = a..d, bit) of CPUID that must be set.
    needs: Option<(u32, u32, usize, u32)>,
}

const fn step(name: &'static str, code: &'static [u8]) -> Step {
    Step { name, code, needs: None }
}

const STEPS: &[Step] = &[
    // nop
    step("64-bit mode", &[0x90]),
    // lea 0x9000,%rdi; xor %eax,%eax; xor %edx,%edx; xor %ebx,%ebx; xor %ecx,%ecx;
    // lock cmpxchg16b (%rdi)
    Step {
        name: "cmpxchg16b",
        code: &[
            0x48, 0x8d, 0x3c, 0x25, 0x00, 0x90, 0x00, 0x00, 0x31, 0xc0, 0x31, 0xd2, 0x31, 0xdb,
            0x31, 0xc9, 0xf0, 0x48, 0x0f, 0xc7, 0x0f,
        ],
        needs: Some((1, 0, 2, 13)),
    },
    // popcnt %rbx,%rcx
    Step { name: "popcnt", code: &[0xf3, 0x48, 0x0f, 0xb8, 0xcb], needs: Some((1, 0, 2, 23)) },
    // int3, which the handler returns from
    step("int3 and iretq", &[0xcc]),
    step("fwait", &[0x9b]),
    // mov $0xc0000101,%ecx; xor %eax,%eax; xor %edx,%edx; wrmsr; swapgs; swapgs
    step(
        "wrmsr and swapgs",
        &[
            0xb9, 0x01, 0x01, 0x00, 0xc0, 0x31, 0xc0, 0x31, 0xd2, 0x0f, 0x30, 0x0f, 0x01, 0xf8,
            0x0f, 0x01, 0xf8,
        ],
    ),
    // mov %cr3,%rax; mov %rax,%cr3; invlpg (%rdi)
    step("cr3 and invlpg", &[0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8, 0x0f, 0x01, 0x3f]),
    // xor %ecx,%ecx; xgetbv
    Step { name: "xgetbv", code: &[0x31, 0xc9, 0x0f, 0x01, 0xd0], needs: Some((1, 0, 2, 26)) },
    // lea 0xa000,%rdi; mov $1,%eax; xor %edx,%edx; xsaves (%rdi)
    Step {
        name: "xsaves",
        code: &[
            0x48, 0x8d, 0x3c, 0x25, 0x00, 0xa0, 0x00, 0x00, 0xb8, 0x01, 0x00, 0x00, 0x00, 0x31,
            0xd2, 0x0f, 0xc7, 0x2f,
        ],
        needs: Some((0xd, 1, 0, 3)),
    },
];

/// Runs all steps, or until `stop` is seen after an interruption.
pub fn run(stop: &AtomicBool) -> Result<(), KvmProblem> {
    let kvm = Kvm::new().map_err(|error| KvmProblem::Open(from(error)))?;
    match kvm.get_api_version() {
        12 => {}
        other => return Err(KvmProblem::Version(other)),
    }
    let ioctl = |doing| move |error| KvmProblem::Ioctl { doing, source: from(error) };
    let cpuid =
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(ioctl("KVM_GET_SUPPORTED_CPUID"))?;
    // Declared before the VM: dropped after it.
    let memory = Memory::new().map_err(|source| KvmProblem::Ioctl { doing: "mmap", source })?;
    let vm = kvm.create_vm().map_err(ioctl("KVM_CREATE_VM"))?;
    let steps: Vec<&Step> = STEPS.iter().filter(|step| has(&cpuid, step.needs)).collect();
    fill(&memory, &steps);
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY as u64,
        userspace_addr: memory.0.as_ptr() as u64,
    };
    // SAFETY: the mapping is ours alone, as large as said, and outlives the VM.
    unsafe { vm.set_user_memory_region(region) }.map_err(ioctl("KVM_SET_USER_MEMORY_REGION"))?;
    // Intel CPUs without unrestricted guest want these pages, outside of our memory; others
    // have no such call.
    let _ = vm.set_tss_address(0xfffb_d000);
    let mut vcpu = vm.create_vcpu(0).map_err(ioctl("KVM_CREATE_VCPU"))?;
    vcpu.set_cpuid2(&cpuid).map_err(ioctl("KVM_SET_CPUID2"))?;
    let mut sregs = vcpu.get_sregs().map_err(ioctl("KVM_GET_SREGS"))?;
    enter_long_mode(&mut sregs, has(&cpuid, Some((1, 0, 2, 26))));
    vcpu.set_sregs(&sregs).map_err(ioctl("KVM_SET_SREGS"))?;
    let regs = kvm_regs { rip: CODE as u64, rsp: STACK as u64, rflags: 2, ..kvm_regs::default() };
    vcpu.set_regs(&regs).map_err(ioctl("KVM_SET_REGS"))?;
    follow(&mut vcpu, &steps, stop)
}

/// Runs until the last step has reported.
fn follow(vcpu: &mut VcpuFd, steps: &[&Step], stop: &AtomicBool) -> Result<(), KvmProblem> {
    let mut done = 0;
    while done < steps.len() {
        let step = steps[done].name;
        let stopped = |how: String| Err(KvmProblem::Stopped { step, how });
        match vcpu.run() {
            Ok(VcpuExit::IoOut(port, &[number])) if port == u16::from(PORT) => {
                if usize::from(number) != done + 1 {
                    return stopped(format!("it reports step {number} after step {done}"));
                }
                done += 1;
            }
            Ok(VcpuExit::InternalError) => {
                return stopped("KVM_EXIT_INTERNAL_ERROR, KVM cannot carry it out".to_owned());
            }
            Ok(exit) => return stopped(format!("unexpected exit {exit:?}")),
            Err(error) if error.errno() == libc::EINTR => {
                if stop.load(Ordering::SeqCst) {
                    return Err(KvmProblem::Hung(std::time::Duration::ZERO, step));
                }
            }
            Err(error) => {
                return Err(KvmProblem::Ioctl { doing: "KVM_RUN", source: from(error) });
            }
        }
    }
    Ok(())
}

/// Page tables, descriptor tables, the handler of int3 and the steps.
fn fill(memory: &Memory, steps: &[&Step]) {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    memory.put(PML4, &(PDPT as u64 | PRESENT_WRITABLE).to_le_bytes());
    memory.put(PDPT, &(DIRECTORY as u64 | PRESENT_WRITABLE).to_le_bytes());
    memory.put(DIRECTORY, &(LARGE | PRESENT_WRITABLE).to_le_bytes());
    // Null, 64-bit code, data: Intel SDM 3A, 3.4.5.
    memory.put(GDT + 8, &0x00af_9b00_0000_ffff_u64.to_le_bytes());
    memory.put(GDT + 16, &0x00cf_9300_0000_ffff_u64.to_le_bytes());
    // A 64-bit interrupt gate, present, selector 8: Intel SDM 3A, 6.14.1.
    let gate = (HANDLER as u64 & 0xffff) | (8 << 16) | (0x8e00 << 32);
    memory.put(IDT + 3 * 16, &gate.to_le_bytes());
    memory.put(HANDLER, &[0x48, 0xcf]); // iretq
    let mut code = Vec::new();
    for (at, step) in (1_u8..).zip(steps) {
        code.extend_from_slice(step.code);
        code.extend_from_slice(&[0xb0, at, 0xe6, PORT]); // mov $at,%al; out %al,$PORT
    }
    code.push(0xf4); // hlt
    memory.put(CODE, &code);
}

fn enter_long_mode(sregs: &mut kvm_sregs, xsave: bool) {
    // PE, MP, ET, NE, WP, AM, PG; PAE, OSFXSR, OSXMMEXCPT, OSXSAVE; LME, LMA: Intel SDM 3A, 2.5.
    sregs.cr0 = 0x8005_0033;
    sregs.cr3 = PML4 as u64;
    sregs.cr4 = 0x620 | if xsave { 1 << 18 } else { 0 };
    sregs.efer = 0x500;
    let code = kvm_segment {
        limit: 0xffff_ffff,
        selector: 8,
        type_: 0xb,
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..kvm_segment::default()
    };
    let data = kvm_segment { selector: 16, type_: 3, l: 0, db: 1, ..code };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    (sregs.gdt.base, sregs.gdt.limit) = (GDT as u64, 23);
    (sregs.idt.base, sregs.idt.limit) = (IDT as u64, 4 * 16 - 1);
}

fn has(cpuid: &CpuId, needs: Option<(u32, u32, usize, u32)>) -> bool {
    let Some((leaf, index, register, bit)) = needs else { return true };
    cpuid.as_slice().iter().any(|entry| {
        let registers = [entry.eax, entry.ebx, entry.ecx, entry.edx];
        entry.function == leaf && entry.index == index && registers[register] >> bit & 1 == 1
    })
}

fn from(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}

/// Anonymous memory of [`MEMORY`] bytes.
struct Memory(NonNull<u8>);

impl Memory {
    fn new() -> io::Result<Self> {
        // SAFETY: a new anonymous mapping at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                MEMORY,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(start.cast()).map(Self).ok_or_else(|| io::Error::other("mmap gave null"))
    }

    /// Copies `bytes` to `at`; panics beyond the end, as a slice does.
    fn put(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= MEMORY, "{at:#x} is outside of the guest");
        // SAFETY: inside the mapping, by the assertion; no reference to it exists.
        unsafe { self.0.as_ptr().add(at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: made by mmap with this length, and used no more.
        unsafe { libc::munmap(self.0.as_ptr().cast(), MEMORY) };
    }
}
