//! MicroVMs, as a user drives them: boto3 for the verbs, HTTPS with a token for the rest.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::{
    HttpAnswer, Stage,
    aws::Pending,
    machine::{self, Process},
    until,
};

/// Longest wait for a microVM to get from one state to the next.
pub const STATE_MAX: Duration = Duration::from_secs(60);

/// Port on which the app listens on 127.0.0.1 alone.
pub const LOOPBACK_PORT: u16 = 9001;

/// A microVM and a token for all its ports.
#[derive(Debug, Clone)]
pub struct Microvm {
    /// `microvm-…`.
    pub id: String,
    /// Bare host, with the port.
    pub endpoint: String,
    /// Value of `X-aws-proxy-auth`.
    pub token: String,
}

/// An idle policy that never acts by itself during a test and lets requests wake the microVM.
#[must_use]
pub fn waking() -> Value {
    json!({"maxIdleDurationSeconds": 28800, "suspendedDurationSeconds": 28800, "autoResumeEnabled": true})
}

impl Stage {
    /// Launches a microVM that requests wake, and waits until it runs.
    pub fn launch(&self) -> anyhow::Result<Microvm> {
        self.launch_with(json!({"idlePolicy": waking()}))
    }

    /// Launches a microVM with these parameters, of the stage's image unless they name another.
    pub fn launch_with(&self, mut parameters: Value) -> anyhow::Result<Microvm> {
        if parameters["imageIdentifier"].is_null() {
            parameters["imageIdentifier"] = json!(self.image.arn);
        }
        let run = self.aws.microvms("run_microvm", parameters)?;
        let id = run["microvmId"].as_str().context("no microvmId")?.to_owned();
        let endpoint = run["endpoint"].as_str().context("no endpoint")?.to_owned();
        self.await_state(&id, "RUNNING")?;
        let token = self.token(&id, json!([{"allPorts": {}}]))?;
        Ok(Microvm { id, endpoint, token })
    }

    /// Launches a microVM that requests wake, and a token for it; does not wait until it runs.
    pub fn begin_launch(&self) -> anyhow::Result<Microvm> {
        let parameters = json!({"imageIdentifier": self.image.arn, "idlePolicy": waking()});
        let run = self.aws.microvms("run_microvm", parameters)?;
        ensure!(run["state"] == "PENDING", "{run}");
        let id = run["microvmId"].as_str().context("no microvmId")?.to_owned();
        let endpoint = run["endpoint"].as_str().context("no endpoint")?.to_owned();
        let token = self.token(&id, json!([{"allPorts": {}}]))?;
        Ok(Microvm { id, endpoint, token })
    }

    /// Launches a microVM with these parameters and waits until its app counts. A snapshot is taken after half a minute
    /// whether the app listens or not, and a busy machine may need longer.
    pub fn launch_counting(&self, parameters: Value) -> anyhow::Result<Microvm> {
        let microvm = self.launch_with(parameters)?;
        until("the app to answer", Duration::from_secs(90), || self.count(&microvm))?;
        Ok(microvm)
    }

    /// Mints a token.
    pub fn token(&self, id: &str, ports: Value) -> anyhow::Result<String> {
        let parameters = json!({"microvmIdentifier": id, "expirationInMinutes": 30, "allowedPorts": ports});
        let answer = self.aws.microvms("create_microvm_auth_token", parameters)?;
        let token = answer["authToken"]["X-aws-proxy-auth"].as_str().context("no X-aws-proxy-auth")?;
        Ok(token.to_owned())
    }

    /// Waits for a state; any end but the one asked for is the failure at once.
    pub fn await_state(&self, id: &str, state: &str) -> anyhow::Result<Value> {
        let mut last = Value::Null;
        until(state, STATE_MAX, || {
            last = self.describe(id)?;
            let ended = last["state"] == "TERMINATED" && state != "TERMINATED";
            ensure!(last["state"] == state || ended, "{id} is {}: {}", last["state"], last["stateReason"]);
            Ok(())
        })?;
        ensure!(last["state"] == state, "{id} ended instead of {state}: {}", last["stateReason"]);
        Ok(last)
    }

    /// `GetMicrovm`.
    pub fn describe(&self, id: &str) -> anyhow::Result<Value> {
        self.aws.microvms("get_microvm", json!({"microvmIdentifier": id}))
    }

    /// Suspends and waits until it is done.
    pub fn suspend(&self, microvm: &Microvm) -> anyhow::Result<()> {
        self.aws.microvms("suspend_microvm", json!({"microvmIdentifier": microvm.id}))?;
        self.await_state(&microvm.id, "SUSPENDED")?;
        Ok(())
    }

    /// SuspendMicrovm → SUSPENDED.
    pub fn timed_suspend(&self, microvm: &Microvm) -> anyhow::Result<Duration> {
        let begin = Instant::now();
        self.aws.microvms("suspend_microvm", json!({"microvmIdentifier": microvm.id}))?;
        // Without a pause between the questions: one would be a good part of what is measured.
        while self.describe(&microvm.id)?["state"] != "SUSPENDED" {
            ensure!(begin.elapsed() < STATE_MAX, "it is not SUSPENDED after {STATE_MAX:?}");
        }
        Ok(begin.elapsed())
    }

    /// Terminates and waits until it is done.
    pub fn terminate(&self, id: &str) -> anyhow::Result<Value> {
        self.aws.microvms("terminate_microvm", json!({"microvmIdentifier": id}))?;
        self.await_state(id, "TERMINATED")
    }

    /// A request to the microVM, not sent yet.
    #[must_use]
    pub fn request(&self, microvm: &Microvm, path: &str) -> Value {
        json!({
            "url": format!("https://{}{path}", microvm.endpoint),
            "headers": {"X-aws-proxy-auth": microvm.token},
            "timeout": 90,
        })
    }

    /// GETs a path of the app.
    pub fn get(&self, microvm: &Microvm, path: &str) -> anyhow::Result<HttpAnswer> {
        self.aws.ask(self.request(microvm, path))
    }

    /// GETs a path of the app and does not wait.
    pub fn get_later(&self, microvm: &Microvm, path: &str) -> anyhow::Result<Pending> {
        self.aws.ask_later(self.request(microvm, path))
    }

    /// GETs a path of the app that answers with JSON.
    pub fn fetch(&self, microvm: &Microvm, path: &str) -> anyhow::Result<Value> {
        self.get(microvm, path)?.json().with_context(|| format!("GET {path} of {}", microvm.id))
    }

    /// Counts one up in the app's memory; the new count.
    pub fn count(&self, microvm: &Microvm) -> anyhow::Result<u64> {
        self.fetch(microvm, "/probe/count")?["count"].as_u64().context("no count")
    }

    /// A microVM's files on the host.
    #[must_use]
    pub fn directory_of(&self, id: &str) -> PathBuf {
        self.server.data_dir().join("microvms").join(id)
    }

    /// The VMM of a microVM.
    pub fn vmm_of(&self, id: &str) -> anyhow::Result<Process> {
        let record =
            std::fs::read(self.directory_of(id).join("vm/vm.json")).with_context(|| format!("{id} has no VMM"))?;
        let pid = serde_json::from_slice::<Value>(&record)?["process"]["pid"].as_u64().context("no pid")?;
        // Its environment names the directory it was started in, which need not have been this one.
        let vmms = machine::vmms_of(self.server.data_dir());
        vmms.into_iter().find(|vmm| u64::from(vmm.pid) == pid).with_context(|| format!("the VMM {pid} of {id} is gone"))
    }

    /// Every microVM that is not terminated, as the API lists them.
    pub fn live(&self) -> anyhow::Result<Vec<(String, String)>> {
        let mut live = Vec::new();
        let mut token = Value::Null;
        loop {
            let mut parameters = json!({"maxResults": 50});
            if let Some(text) = token.as_str() {
                parameters["nextToken"] = json!(text);
            }
            let page = self.aws.microvms("list_microvms", parameters)?;
            for item in page["items"].as_array().context("no items")? {
                let (id, state) = (item["microvmId"].as_str(), item["state"].as_str());
                let (id, state) = (id.context("no microvmId")?, state.context("no state")?);
                if state != "TERMINATED" {
                    live.push((id.to_owned(), state.to_owned()));
                }
            }
            token = page["nextToken"].clone();
            if token.is_null() {
                return Ok(live);
            }
        }
    }
}
