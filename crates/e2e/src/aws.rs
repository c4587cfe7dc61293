//! A real, unmodified boto3 in a Python process beside the tests, asked over a pipe.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::repository;

/// What the interpreter runs: the bridge, with the module it imports in place of a file.
const BRIDGE: &str = concat!(
    "import sys, types\n",
    "shapes = types.ModuleType('shapes')\n",
    "exec(sys.argv[1], shapes.__dict__)\n",
    "sys.modules['shapes'] = shapes\n",
    include_str!("bridge.py")
);

/// Answers against the model that ships in botocore.
const SHAPES: &str = include_str!("shapes.py");

/// Longest wait for any one answer; every client behind the bridge has a shorter limit of its own.
const ANSWER_MAX: Duration = Duration::from_secs(240);

/// What boto3 raised.
#[derive(Debug, Clone, Deserialize)]
pub struct AwsError {
    /// Name of the error, such as `ValidationException`, or of the Python exception.
    pub code: String,
    /// Its text.
    pub message: String,
    /// HTTP status; 0 if there was no answer.
    pub status: u16,
}

impl fmt::Display for AwsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.code, self.status, self.message)
    }
}

impl std::error::Error for AwsError {}

/// What an endpoint answered.
#[derive(Debug, Clone, Deserialize)]
pub struct HttpAnswer {
    /// HTTP status; 0 if there was no answer and `body` says why.
    pub status: u16,
    /// Header fields, names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: String,
    /// From before the connection to the first byte of the body.
    pub first_byte_ms: f64,
    /// From before the connection to the last byte.
    pub ms: f64,
}

impl HttpAnswer {
    /// The body as JSON of a 200.
    pub fn json(&self) -> anyhow::Result<Value> {
        if self.status != 200 {
            bail!("HTTP {} instead of 200: {}", self.status, self.body);
        }
        serde_json::from_str(&self.body).with_context(|| format!("not JSON: {}", self.body))
    }
}

/// What the API answered to a request that was sent as it is.
#[derive(Debug, Clone, Deserialize)]
pub struct RawAnswer {
    /// HTTP status.
    pub status: u16,
    /// Header fields, names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: String,
    /// What about it the service's model does not allow.
    pub mismatches: Vec<String>,
}

impl RawAnswer {
    /// The error's name; empty for a success.
    #[must_use]
    pub fn kind(&self) -> &str {
        self.headers.get("x-amzn-errortype").map_or("", String::as_str)
    }

    /// The error's text.
    #[must_use]
    pub fn message(&self) -> String {
        let body: Value = serde_json::from_str(&self.body).unwrap_or_default();
        [&body["message"], &body["Message"]].into_iter().find_map(Value::as_str).unwrap_or_default().to_owned()
    }
}

impl fmt::Display for RawAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.status, self.kind(), self.body)
    }
}

/// Who signs, and when they think it is.
#[derive(Debug, Clone, Default)]
pub struct Signer {
    /// Access key id; the server's own when absent.
    pub access_key: Option<String>,
    /// Secret; the server's own when absent.
    pub secret_key: Option<String>,
    /// By how many seconds the client's clock is wrong.
    pub clock_offset: i64,
}

type Waiting = Arc<Mutex<HashMap<u64, mpsc::Sender<Value>>>>;

/// The bridge.
pub struct Aws {
    child: Child,
    stdin: Mutex<ChildStdin>,
    waiting: Waiting,
    next: AtomicU64,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The Python with boto3: `PILOTLIGHT_PYTHON`, or the one `make setup` makes.
#[must_use]
pub fn python() -> PathBuf {
    std::env::var_os("PILOTLIGHT_PYTHON").map_or_else(|| repository().join("target/venv/bin/python"), PathBuf::from)
}

impl Aws {
    /// Starts boto3 with the variables of `pilotlight env`.
    pub fn start(environment: &BTreeMap<String, String>) -> anyhow::Result<Self> {
        let python = python();
        let mut child = Command::new(&python)
            .args(["-u", "-c", BRIDGE, SHAPES])
            .envs(environment)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {} (made by `make setup`)", python.display()))?;
        let stdin = Mutex::new(child.stdin.take().context("stdin is piped")?);
        let stdout = BufReader::new(child.stdout.take().context("stdout is piped")?);
        let waiting = Waiting::default();
        let answers = Arc::clone(&waiting);
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let Ok(answer) = serde_json::from_str::<Value>(&line) else { continue };
                let taken = answer["id"].as_u64().and_then(|id| locked(&answers).remove(&id));
                if let Some(taker) = taken {
                    // The taker is gone only if it gave up.
                    let _ = taker.send(answer);
                }
            }
            // Dropping the senders tells who still waits that no answer comes.
            locked(&answers).clear();
        });
        Ok(Self { child, stdin, waiting, next: AtomicU64::new(1) })
    }

    fn send(&self, mut request: Value) -> anyhow::Result<Pending> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        request["id"] = json!(id);
        let (sender, receiver) = mpsc::channel();
        locked(&self.waiting).insert(id, sender);
        let mut line = serde_json::to_vec(&request)?;
        line.push(b'\n');
        locked(&self.stdin).write_all(&line).context("boto3's process is gone")?;
        Ok(Pending(receiver))
    }

    /// Calls `client.operation(**parameters)`; the answer without its metadata.
    pub fn call(&self, client: &str, operation: &str, parameters: Value) -> anyhow::Result<Value> {
        self.call_as(client, operation, parameters, &Signer::default())
    }

    /// The same of `lambda-microvms`.
    pub fn microvms(&self, operation: &str, parameters: Value) -> anyhow::Result<Value> {
        self.call("lambda-microvms", operation, parameters)
    }

    /// A call signed by someone else.
    pub fn call_as(&self, client: &str, operation: &str, parameters: Value, signer: &Signer) -> anyhow::Result<Value> {
        let mut answer = self
            .send(json!({
                "op": "call", "client": client, "operation": operation, "parameters": parameters,
                "access_key": signer.access_key, "secret_key": signer.secret_key,
                "clock_offset": signer.clock_offset,
            }))?
            .wait()
            .with_context(|| operation.to_owned())?;
        Ok(answer["answer"].take())
    }

    /// A call that must be refused; how it was.
    pub fn refusal(&self, operation: &str, parameters: Value) -> anyhow::Result<AwsError> {
        self.refusal_as("lambda-microvms", operation, parameters, &Signer::default())
    }

    /// A call signed by someone else that must be refused.
    pub fn refusal_as(
        &self,
        client: &str,
        operation: &str,
        parameters: Value,
        signer: &Signer,
    ) -> anyhow::Result<AwsError> {
        match self.call_as(client, operation, parameters.clone(), signer) {
            Ok(answer) => Err(anyhow!("{operation} with {parameters} was not refused: {answer}")),
            Err(error) => error.downcast::<AwsError>(),
        }
    }

    /// Sends a call and does not wait.
    pub fn call_later(&self, operation: &str, parameters: Value) -> anyhow::Result<Pending> {
        self.send(json!({
            "op": "call", "client": "lambda-microvms", "operation": operation, "parameters": parameters,
        }))
    }

    /// The service's model as it ships in botocore.
    pub fn model(&self, service: &str) -> anyhow::Result<Value> {
        self.send(json!({"op": "model", "service": service}))?.wait()
    }

    /// A request to the API as it is given: `method`, `target`, `headers`, `body`, `unsigned`; with `service` and
    /// `operation`, its answer is held against the model, and one that does not fit is an error.
    pub fn raw(&self, mut request: Value) -> anyhow::Result<RawAnswer> {
        request["op"] = json!("raw");
        let answer: RawAnswer = serde_json::from_value(self.send(request.clone())?.wait()?)?;
        if !answer.mismatches.is_empty() {
            bail!("{request}\n  was answered {answer}\n  which is wrong: {}", answer.mismatches.join("; "));
        }
        Ok(answer)
    }

    /// An address that is enough to do this with S3 for so many seconds.
    pub fn presigned(&self, operation: &str, parameters: Value, expires: u32) -> anyhow::Result<String> {
        let request = json!({
            "op": "presign", "client": "s3", "operation": operation, "parameters": parameters, "expires": expires,
        });
        Ok(serde_json::from_value(self.send(request)?.wait()?)?)
    }

    /// One HTTPS (or, by its URL, HTTP) request: `method`, `url`, `headers`, `body`, `timeout`.
    pub fn ask(&self, request: Value) -> anyhow::Result<HttpAnswer> {
        Ok(serde_json::from_value(self.ask_later(request)?.wait()?)?)
    }

    /// Sends one HTTPS request and does not wait.
    pub fn ask_later(&self, mut request: Value) -> anyhow::Result<Pending> {
        request["op"] = json!("ask");
        self.send(request)
    }

    /// The same HTTPS request so many times at once.
    pub fn ask_many(&self, mut request: Value, count: usize) -> anyhow::Result<Vec<HttpAnswer>> {
        request["op"] = json!("many");
        request["count"] = json!(count);
        Ok(serde_json::from_value(self.send(request)?.wait()?)?)
    }
}

impl Drop for Aws {
    fn drop(&mut self) {
        // Already ended is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An answer to come.
pub struct Pending(mpsc::Receiver<Value>);

impl Pending {
    /// Waits for it. What boto3 raised is an [`AwsError`] in the chain.
    pub fn wait(self) -> anyhow::Result<Value> {
        let mut answer = self.0.recv_timeout(ANSWER_MAX).context("no answer from boto3's process")?;
        match answer.get("error") {
            Some(error) => Err(serde_json::from_value::<AwsError>(error.clone())?.into()),
            None => Ok(answer["ok"].take()),
        }
    }
}
