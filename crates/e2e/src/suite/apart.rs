//! The edge in a process of its own: endpoints go on while the rest of the server is away.

use std::{
    io::{BufRead, BufReader, Lines, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context, ensure};
use e2e::{
    Stage, aws, machine,
    microvm::{Microvm, waking},
    repository,
};
use rustix::process::Signal;
use serde_json::json;

use super::{Test, access::connector};

pub const TESTS: &[Test] = &[("apart::endpoints_go_on_while_control_is_killed_away_and_hangs", goes_on)];

/// A WebSocket that stays: a shell, which is typed sums into.
struct Calculator {
    child: Child,
    typing: ChildStdin,
    shown: Lines<BufReader<ChildStdout>>,
}

impl Calculator {
    fn open(stage: &Stage, microvm: &Microvm) -> anyhow::Result<Self> {
        let answer = stage.aws.microvms(
            "create_microvm_shell_auth_token",
            json!({"microvmIdentifier": microvm.id, "expirationInMinutes": 5}),
        )?;
        let environment = stage.server.environment()?;
        let facts = json!({
            "endpoint": microvm.endpoint, "token": answer["authToken"]["X-aws-proxy-auth"],
            "ca": environment.get("PILOTLIGHT_CA_BUNDLE"),
        });
        let mut child = Command::new(aws::python())
            .arg(repository().join("crates/e2e/clients/apart.py"))
            .arg(facts.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let typing = child.stdin.take().context("stdin is piped")?;
        let shown = BufReader::new(child.stdout.take().context("stdout is piped")?).lines();
        Ok(Self { child, typing, shown })
    }

    fn next(&mut self) -> anyhow::Result<String> {
        Ok(self.shown.next().context("the client is gone")??)
    }

    /// Bytes go in, and others come out.
    fn works(&mut self, number: u32) -> anyhow::Result<()> {
        writeln!(self.typing, "{number}")?;
        let shown = self.next()?;
        ensure!(shown == (number * 2).to_string(), "twice {number} is {shown}");
        Ok(())
    }
}

impl Drop for Calculator {
    fn drop(&mut self) {
        // Already ended is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn goes_on(stage: &mut Stage) -> anyhow::Result<()> {
    stage.server.stop()?;
    let (mut rest, mut edge) = (stage.server.with_roles("control,host"), stage.server.with_roles("edge"));
    // It waits for the rest.
    edge.start()?;
    rest.start()?;
    let awake = stage.launch_with(json!({
        "idlePolicy": waking(),
        "ingressNetworkConnectors": [connector("SHELL_INGRESS"), connector("HTTP_INGRESS")],
    }))?;
    let asleep = stage.launch()?;
    ensure!(stage.count(&awake)? == 1 && stage.count(&asleep)? == 1);
    stage.suspend(&asleep)?;
    let mut calculator = Calculator::open(stage, &awake)?;
    calculator.works(1)?;

    rest.crash()?;
    calculator.works(2)?;
    ensure!(stage.count(&awake)? == 2, "a request of a new connection");
    let waits = stage.get_later(&asleep, "/probe/count")?;
    calculator.works(3)?;
    rest.start()?;
    let waited = waits.wait()?;
    ensure!(waited["status"] == 200 && waited["body"].as_str().is_some_and(|body| body.contains('2')), "{waited}");
    calculator.works(4)?;

    machine::signal(rest.pid()?, Signal::STOP)?;
    let served = calculator.works(5).and_then(|()| stage.count(&awake)).and_then(|_| stage.count(&asleep));
    machine::signal(rest.pid()?, Signal::CONT)?;
    ensure!(served.context("while control hangs")? == 3);

    // Everything is as it was before: a suspend ends the streams, and a request wakes.
    stage.suspend(&awake)?;
    let end = calculator.next()?;
    ensure!(end.starts_with("closed"), "{end}");
    ensure!(stage.count(&awake)? == 4, "the counter was lost");
    stage.no_orphans()?;
    let statuses = (edge.stop()?, rest.stop()?);
    ensure!(statuses.0.success() && statuses.1.success(), "they ended with {statuses:?}");
    Ok(())
}
