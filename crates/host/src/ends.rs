//! How a microVM ended by itself, in words for its `stateReason`. What a guest says of itself is bounded before it is
//! repeated.

use guest_protocol::{AppEnd, OutOfMemory};
use vmm::ExitReport;

/// What a kernel begins the line with by which it gives up.
const PANIC: &str = "Kernel panic - not syncing: ";

/// What our agent begins such a line with.
const AGENT: [&str; 2] = ["pilotlight-agent panicked: ", "pilotlight-agent failed: "];

/// Most characters of a guest's own words.
const WORDS_MAX: usize = 200;

/// The kernel's limit on the name of a process (`TASK_COMM_LEN`), without the zero.
const NAME_MAX: usize = 15;

/// The service's sentence for an app that ended, and why if that is known.
pub fn of_app(end: &AppEnd) -> String {
    let sentence = format!("Container Stopped with Exit Code: {}", end.code);
    match &end.out_of_memory {
        None => sentence,
        Some(OutOfMemory { process, resident_kib }) => {
            let (process, mib) = (printable(process, NAME_MAX), resident_kib / 1024);
            format!("{sentence} (out of memory: the guest's kernel ended '{process}', which held {mib} MiB)")
        }
    }
}

/// Why a VM is gone, by its process's end and the last it wrote to its console.
pub fn of_vm(report: &ExitReport, console: &[u8]) -> String {
    // A guest ends its VM by switching it off; of any other end it knows nothing.
    let by_guest = report.signal.is_none() && !report.out_of_memory && report.blame.is_none();
    if by_guest {
        let console = String::from_utf8_lossy(console);
        if let Some(words) = after(&console, PANIC) {
            return format!("The guest's kernel panicked: {words}");
        }
        if let Some(words) = AGENT.iter().find_map(|beginning| after(&console, beginning)) {
            return format!("The agent in the guest failed: {words}");
        }
    }
    if by_guest && report.code == Some(0) {
        return "The guest switched its virtual machine off, or restarted it".to_owned();
    }
    format!("The virtual machine ended unexpectedly: {report}")
}

/// What follows the last of these in its line.
fn after(console: &str, beginning: &str) -> Option<String> {
    let (_, rest) = console.rsplit_once(beginning)?;
    Some(printable(rest.lines().next().unwrap_or_default().trim_end(), WORDS_MAX))
}

fn printable(text: &str, most: usize) -> String {
    text.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).take(most).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(code: Option<i32>, signal: Option<i32>) -> ExitReport {
        ExitReport { code, signal, out_of_memory: false, blame: None, log_tail: "words of the VMM".to_owned() }
    }

    #[test]
    fn an_apps_end_begins_with_the_services_sentence() {
        assert_eq!(of_app(&AppEnd { code: 3, out_of_memory: None }), "Container Stopped with Exit Code: 3");
        let out_of_memory =
            Some(OutOfMemory { process: "py\u{1b}thon3-and-more-than-that".to_owned(), resident_kib: 1_938_432 });
        assert_eq!(
            of_app(&AppEnd { code: 137, out_of_memory }),
            "Container Stopped with Exit Code: 137 (out of memory: the guest's kernel ended 'py?thon3-and-mo', which held 1893 MiB)"
        );
    }

    #[test]
    fn a_panic_is_named_by_its_last_line() {
        let console = b"[    1.2] Kernel panic - not syncing: an old one\r\n\
                        [   52.1] Kernel panic - not syncing: sysrq triggered crash\r\n[   52.2] CPU: 0 PID: 97\r\n";
        for code in [Some(0), None] {
            assert_eq!(of_vm(&report(code, None), console), "The guest's kernel panicked: sysrq triggered crash");
        }
        let long = [PANIC.as_bytes(), &[b'x'; 1000], b"\xff\n"].concat();
        assert_eq!(of_vm(&report(Some(0), None), &long).len(), "The guest's kernel panicked: ".len() + WORDS_MAX);
        let agent = b"pilotlight-agent failed: cannot mount x\n";
        assert_eq!(of_vm(&report(Some(0), None), agent), "The agent in the guest failed: cannot mount x");
    }

    #[test]
    fn what_a_guest_claims_does_not_explain_an_end_that_was_not_its_own() {
        let console = b"Kernel panic - not syncing: I say so\n";
        assert!(of_vm(&report(None, Some(9)), console).starts_with("The virtual machine ended unexpectedly: signal 9"));
        assert!(of_vm(&report(Some(1), None), b"").contains("words of the VMM"));
        assert!(of_vm(&report(Some(0), None), b"").starts_with("The guest switched"));
    }
}
