//! Which system calls of a VMM fail.
//!
//! A list of what is denied, not of what is allowed: the program is whatever QEMU or Firecracker the machine has, with
//! whatever C library, and a call missing from a list of allowed ones would end a user's session on the day a library
//! changes. What the list denies is what reaches beyond the jail, or into parts of the kernel a VMM has no business
//! with. QEMU's own `-sandbox` and Firecracker's
//! own list of allowed calls come on top of it. A denied call fails, it raises no signal: Firecracker was seen to hang in its
//! handler.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use super::Sockets;
use crate::start::StartError;

/// Calls that fail with EPERM, whatever their arguments.
const DENIED: &[libc::c_long] = &[
    // other processes
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    // mounts, roots, namespaces
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    // the machine
    libc::SYS_reboot,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_vhangup,
    // identity
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    // parts of the kernel that are large, new, or shared by all
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_fanotify_mark,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_personality,
    libc::SYS_modify_ldt,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    libc::SYS_memfd_secret,
    libc::SYS_vmsplice,
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_msgget,
    libc::SYS_semget,
    libc::SYS_mq_open,
    // files
    libc::SYS_mknod,
    libc::SYS_mknodat,
    libc::SYS_execveat,
];

/// The most bits of the flags of `clone` that make namespaces.
const NEW_NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

/// `TIOCSTI` puts characters into somebody's terminal, `TIOCLINUX` into a console.
const TIOCSTI: u64 = 0x5412;
const TIOCLINUX: u64 = 0x541c;

/// Bit of a call's number that selects the x32 interface, where the same calls have other numbers (`asm/unistd.h`).
#[cfg(target_arch = "x86_64")]
const X32: u32 = 0x4000_0000;

/// The filters of a VMM, to be installed in this order.
pub(super) fn denied(sockets: Sockets) -> Result<[BpfProgram; 2], StartError> {
    let denied = compile_denied(sockets).map_err(|source| StartError::Filter { source })?;
    Ok([unknown(), denied])
}

/// Calls that are answered as if the kernel did not know them.
///
/// `clone3`: its flags are in memory, where a filter cannot look; C libraries then use `clone`. And every call of the
/// x32 interface, which would be a way around the other filter.
fn unknown() -> BpfProgram {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let jump = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: code as u16, jt, jf, k };
    let load_number = statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0);
    let allow = statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW);
    let refuse = statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32);
    let is_clone3 = |jt, jf| jump(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, libc::SYS_clone3 as u32, jt, jf);
    #[cfg(target_arch = "x86_64")]
    let program = {
        let is_x32 = jump(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, X32, 1, 0);
        vec![load_number, is_x32, is_clone3(0, 1), refuse, allow]
    };
    #[cfg(not(target_arch = "x86_64"))]
    let program = vec![load_number, is_clone3(0, 1), refuse, allow];
    program.into_iter().map(|i| seccompiler::sock_filter { code: i.code, jt: i.jt, jf: i.jf, k: i.k }).collect()
}

fn compile_denied(sockets: Sockets) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = DENIED.iter().map(|call| (*call, vec![])).collect();
    // One rule a bit: a rule is met when all of its conditions are, and this is about any of the bits.
    let bits = (0..64).map(|bit| 1u64 << bit).filter(|bit| NEW_NAMESPACES & bit != 0);
    let namespaces = bits.map(|bit| condition(0, SeccompCmpOp::MaskedEq(bit), bit));
    rules.insert(libc::SYS_clone, namespaces.collect::<Result<_, _>>()?);
    rules.insert(
        libc::SYS_ioctl,
        vec![condition(1, SeccompCmpOp::Eq, TIOCSTI)?, condition(1, SeccompCmpOp::Eq, TIOCLINUX)?],
    );
    rules.insert(libc::SYS_userfaultfd, vec![]);
    match sockets {
        Sockets::Inherited => {
            rules.extend([libc::SYS_socket, libc::SYS_connect, libc::SYS_bind].map(|call| (call, vec![])));
        }
        Sockets::Own => {
            rules.insert(libc::SYS_socket, vec![condition(0, SeccompCmpOp::Ne, libc::AF_UNIX as u64)?]);
        }
    }
    compile(rules, SeccompAction::Errno(libc::EPERM as u32))
}

/// A filter that hands every opening of a file for reading and writing to the parent.
///
/// seccompiler has no action for that, so the one for a tracer is replaced, which it compiles to the same form.
pub(super) fn opens_for_writing() -> Result<BpfProgram, StartError> {
    const MARK: u32 = 0x5eed;
    let read_write = |argument| {
        condition(argument, SeccompCmpOp::MaskedEq(libc::O_ACCMODE as u64), libc::O_RDWR as u64).map(|rule| vec![rule])
    };
    let compiled = || {
        let mut rules = BTreeMap::from([(libc::SYS_openat, read_write(2)?)]);
        #[cfg(target_arch = "x86_64")]
        rules.insert(libc::SYS_open, read_write(1)?);
        compile(rules, SeccompAction::Trace(MARK))
    };
    let mut program: BpfProgram = compiled().map_err(|source| StartError::Filter { source })?;
    for instruction in &mut program {
        if u32::from(instruction.code) == libc::BPF_RET | libc::BPF_K && instruction.k == libc::SECCOMP_RET_TRACE | MARK
        {
            instruction.k = libc::SECCOMP_RET_USER_NOTIF;
        }
    }
    Ok(program)
}

/// A rule of one condition.
fn condition(argument: u8, operation: SeccompCmpOp, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operation, value)?;
    SeccompRule::new(vec![condition])
}

fn compile(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    on_match: SeccompAction,
) -> Result<BpfProgram, seccompiler::BackendError> {
    let arch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, SeccompAction::Allow, on_match, arch)?.try_into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_compile_and_fit() {
        for sockets in [Sockets::Inherited, Sockets::Own] {
            for program in denied(sockets).unwrap() {
                assert!(program.len() < 4096, "the kernel takes no more (BPF_MAXINSNS)");
            }
        }
        let asks = opens_for_writing().unwrap();
        assert!(asks.iter().any(|instruction| instruction.k == libc::SECCOMP_RET_USER_NOTIF));
    }
}
