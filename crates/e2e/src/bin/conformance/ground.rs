//! What the tests share: one server, the models, and things to ask about.

use std::sync::OnceLock;

use anyhow::Context;
use e2e::{
    Front,
    aws::Signer,
    model::{Model, Operation},
    until,
};
use serde_json::{Value, json};

/// What an operation that is not served is refused with.
const UNKNOWN: &str = "UnknownOperationException";

/// The ground.
pub struct Ground {
    /// The server and boto3.
    pub front: Front,
    /// The models of both services.
    pub models: [Model; 2],
    /// An image that is there; nothing changes it.
    pub image: String,
    /// The build of its version 1.0.
    pub build: String,
    /// A microVM of it that runs; nothing changes it.
    pub microvm: String,
    /// A user whom no policy allows anything.
    pub nobody: Signer,
}

static GROUND: OnceLock<Result<Ground, String>> = OnceLock::new();

impl Ground {
    /// The ground, or why there is none.
    pub fn get() -> Result<&'static Self, &'static String> {
        GROUND.get_or_init(|| Self::lay().map_err(|error| format!("{error:?}"))).as_ref()
    }

    fn lay() -> anyhow::Result<Self> {
        let front = Front::open(&[])?;
        let models = [Model::load(&front.aws, "lambda-microvms")?, Model::load(&front.aws, "lambda-core")?];
        let image = front.image(json!({}))?;
        let version = json!({"imageIdentifier": image, "imageVersion": "1.0"});
        let builds = front.aws.microvms("list_microvm_image_builds", version)?;
        let build = builds["items"][0]["buildId"].as_str().context("no build")?.to_owned();
        let microvm = front.microvm(&image)?;
        let nobody = user(&front, "nobody")?;
        Ok(Self { front, models, image, build, microvm, nobody })
    }

    /// The operations that are ours to serve: those of microVMs and of network connectors.
    pub fn operations(&self) -> Vec<Operation> {
        let all = self.models.iter().flat_map(Model::operations);
        all.filter(|operation| operation.service != "lambda-core" || operation.name.contains("NetworkConnector"))
            .collect()
    }

    /// One of them, with its model.
    pub fn operation(&self, name: &str) -> anyhow::Result<(&Model, Operation)> {
        let found = self.operations().into_iter().find(|operation| operation.name == name);
        let operation = found.with_context(|| format!("no model has {name}"))?;
        let model = self.models.iter().find(|model| model.service == operation.service);
        Ok((model.context("it came from a model")?, operation))
    }

    /// Whether it is served: asked of the server, about something that is not there.
    pub fn serves(&self, operation: &Operation) -> anyhow::Result<bool> {
        let model = self.models.iter().find(|model| model.service == operation.service).context("no model")?;
        let answer = self.front.aws.raw(json!({
            "method": operation.method, "target": model.nowhere(operation), "body": "{}",
            "service": operation.service, "operation": operation.name,
        }))?;
        Ok(answer.kind() != UNKNOWN)
    }

    /// Calls an operation as boto3 does; the answer has been held against the model.
    pub fn call(&self, name: &str, parameters: Value) -> anyhow::Result<Value> {
        let (_, operation) = self.operation(name)?;
        self.front.aws.call(operation.service, &e2e::model::words_apart(name, '_'), parameters)
    }
}

/// A user without policies, whose key is known.
fn user(front: &Front, name: &str) -> anyhow::Result<Signer> {
    front.server.iam(&["user", "create", name], "")?;
    let exports = front.server.iam(&["key", "create", "--user", name], "")?;
    let value = |name: &str| -> anyhow::Result<String> {
        let (_, rest) = exports.split_once(&format!("export {name}='")).with_context(|| exports.clone())?;
        Ok(rest.split('\'').next().unwrap_or_default().to_owned())
    };
    let signer = Signer {
        access_key: Some(value("AWS_ACCESS_KEY_ID")?),
        secret_key: Some(value("AWS_SECRET_ACCESS_KEY")?),
        clock_offset: 0,
    };
    until("the key to be known", std::time::Duration::from_secs(5), || {
        front.aws.call_as("sts", "get_caller_identity", json!({}), &signer)
    })?;
    Ok(signer)
}
