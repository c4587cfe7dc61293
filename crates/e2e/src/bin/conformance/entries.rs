//! The table: every operation that is served, and how to call it.

use std::time::Duration;

use anyhow::ensure;
use e2e::{server::OFFLINE_SUBNET, until};
use serde_json::{Value, json};

use crate::ground::Ground;

/// How to make the parameters of a call that succeeds, and of which nothing else depends.
type Make = fn(&Ground) -> anyhow::Result<Value>;

/// A call about something that is not there: its parameters, the error's name, its text.
type Missing = (fn(&Ground) -> Value, &'static str, &'static str);

/// One operation.
pub struct Entry {
    /// Its name in the model.
    pub name: &'static str,
    /// Parameters with nothing that could be left out.
    pub minimal: Make,
    /// Parameters with everything that can be said.
    pub full: Make,
    /// Calls about things that are not there: parameters, the error's name, its text.
    pub missing: &'static [Missing],
    /// How it differs from the real service and why; nothing, if it does not.
    pub differs: &'static str,
}

/// An id that nothing has.
const NO_MICROVM: &str = "microvm-00000000-0000-4000-8000-000000000000";
const NO_SUCH_MICROVM: &str = "MicroVM not found: microvm-00000000-0000-4000-8000-000000000000";
const NO_IMAGE: &str = "arn:aws:lambda:us-east-1:000000000000:microvm-image:nothing";
const NO_SUCH_IMAGE: &str =
    "MicroVMImage not found for MicroVMImageID: arn:aws:lambda:us-east-1:000000000000:microvm-image:nothing";
const NO_SUCH_VERSION: &str = "MicroVMImage not found for MicroVMImage: arn:aws:lambda:us-east-1:000000000000:microvm-image:nothing, Version: 1.0";
const NOT_FOUND: &str = "ResourceNotFoundException";

const EGRESS: &str = "arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:INTERNET_EGRESS";
const INGRESS: &str = "arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:HTTP_INGRESS";
const ROLE: &str = "arn:aws:iam::000000000000:role/some";

fn microvm(id: &str) -> Value {
    json!({"microvmIdentifier": id})
}

fn no_microvm(_: &Ground) -> Value {
    microvm(NO_MICROVM)
}

fn no_image(_: &Ground) -> Value {
    json!({"imageIdentifier": NO_IMAGE})
}

fn no_version(_: &Ground) -> Value {
    json!({"imageIdentifier": NO_IMAGE, "imageVersion": "1.0"})
}

fn nothing(_: &Ground) -> anyhow::Result<Value> {
    Ok(json!({}))
}

fn shared_microvm(ground: &Ground) -> anyhow::Result<Value> {
    Ok(microvm(&ground.microvm))
}

fn shared_image(ground: &Ground) -> anyhow::Result<Value> {
    Ok(json!({"imageIdentifier": ground.image}))
}

fn shared_version(ground: &Ground) -> anyhow::Result<Value> {
    Ok(json!({"imageIdentifier": ground.image, "imageVersion": "1.0"}))
}

fn fresh_microvm(ground: &Ground) -> anyhow::Result<Value> {
    Ok(microvm(&ground.front.microvm(&ground.image)?))
}

fn suspended_microvm(ground: &Ground) -> anyhow::Result<Value> {
    let id = ground.front.microvm(&ground.image)?;
    ground.call("SuspendMicrovm", microvm(&id))?;
    ground.front.await_microvm(&id, "SUSPENDED")?;
    Ok(microvm(&id))
}

fn fresh_image(ground: &Ground) -> anyhow::Result<Value> {
    Ok(json!({"imageIdentifier": ground.front.image(json!({}))?}))
}

fn definition() -> Value {
    json!({
        "baseImageArn": e2e::image::BASE_IMAGE,
        "buildRoleArn": ROLE,
        "codeArtifact": {"uri": format!("s3://{}/{}", e2e::image::BUCKET, e2e::front::ARTIFACT)},
    })
}

fn full_definition() -> Value {
    let mut all = definition();
    let more = json!({
        "baseImageVersion": "1",
        "description": "everything there is to say",
        "logging": {"cloudWatch": {"logGroup": "/a/group", "logStream": "a-stream"}},
        "egressNetworkConnectors": [EGRESS],
        "cpuConfigurations": [{"architecture": "X86_64"}, {"architecture": "ARM_64"}],
        "resources": [{"minimumMemoryInMiB": 512}],
        "additionalOsCapabilities": ["ALL"],
        "hooks": {
            "port": 9000,
            "microvmImageHooks": {
                "ready": "ENABLED", "readyTimeoutInSeconds": 60, "validate": "ENABLED", "validateTimeoutInSeconds": 60,
            },
            "microvmHooks": {
                "run": "ENABLED", "runTimeoutInSeconds": 5, "resume": "ENABLED", "resumeTimeoutInSeconds": 5,
                "suspend": "ENABLED", "suspendTimeoutInSeconds": 5, "terminate": "ENABLED",
                "terminateTimeoutInSeconds": 5,
            },
        },
        "environmentVariables": {"MODE": "test"},
    });
    for (name, value) in more.as_object().into_iter().flatten() {
        all[name] = value.clone();
    }
    all
}

fn new_image(ground: &Ground) -> anyhow::Result<Value> {
    let mut parameters = definition();
    parameters["name"] = json!(ground.front.name("minimal"));
    Ok(parameters)
}

fn new_full_image(ground: &Ground) -> anyhow::Result<Value> {
    let mut parameters = full_definition();
    parameters["name"] = json!(ground.front.name("full"));
    parameters["tags"] = json!({"team": "conformance"});
    parameters["clientToken"] = json!(ground.front.name("token"));
    Ok(parameters)
}

/// An image with a run hook, for a launch that says everything.
fn full_run(ground: &Ground) -> anyhow::Result<Value> {
    let created = ground.call("CreateMicrovmImage", new_full_image(ground)?)?;
    let arn = created["imageArn"].as_str().unwrap_or_default().to_owned();
    ground.front.await_image(&arn, "CREATED")?;
    Ok(json!({
        "imageIdentifier": arn,
        "imageVersion": "1.0",
        "ingressNetworkConnectors": [INGRESS],
        "egressNetworkConnectors": [EGRESS],
        "executionRoleArn": ROLE,
        "idlePolicy": {"maxIdleDurationSeconds": 600, "suspendedDurationSeconds": 600, "autoResumeEnabled": true},
        "logging": {"cloudWatch": {"logGroup": "/a/group", "logStream": "a-stream"}},
        "runHookPayload": "a payload",
        "maximumDurationInSeconds": 3600,
        "clientToken": ground.front.name("token"),
    }))
}

fn with(mut parameters: Value, more: Value) -> anyhow::Result<Value> {
    for (name, value) in more.as_object().into_iter().flatten() {
        parameters[name] = value.clone();
    }
    Ok(parameters)
}

/// An image whose version 1.0 is not the last: what deletes it leaves 2.0.
fn image_with_two_versions(ground: &Ground) -> anyhow::Result<Value> {
    let image = fresh_image(ground)?;
    ground.call("UpdateMicrovmImage", with(definition(), image.clone())?)?;
    ground.front.await_image(image["imageIdentifier"].as_str().unwrap_or_default(), "UPDATED")?;
    with(json!({"imageVersion": "1.0"}), image)
}

fn token(ports: Value) -> impl Fn(&str) -> Value {
    move |id| json!({"microvmIdentifier": id, "expirationInMinutes": 5, "allowedPorts": ports})
}

/// A microVM whose shell may be entered.
fn shell(ground: &Ground) -> anyhow::Result<Value> {
    let shell = INGRESS.replace("HTTP_INGRESS", "SHELL_INGRESS");
    let run =
        ground.call("RunMicrovm", json!({"imageIdentifier": ground.image, "ingressNetworkConnectors": [shell]}))?;
    Ok(json!({"microvmIdentifier": run["microvmId"], "expirationInMinutes": 5}))
}

const NO_CONNECTOR: &str =
    "Network connector not found for: arn:aws:lambda:us-east-1:000000000000:network-connector:nothing";

fn no_connector(_: &Ground) -> Value {
    json!({"Identifier": "nothing"})
}

fn new_connector(ground: &Ground) -> anyhow::Result<Value> {
    Ok(json!({
        "Name": ground.front.name("connector"),
        "Configuration": {"VpcEgressConfiguration": {
            "SubnetIds": [OFFLINE_SUBNET], "NetworkProtocol": "IPv4", "AssociatedComputeResourceTypes": ["MicroVm"],
        }},
        "OperatorRole": ROLE,
        "ClientToken": ground.front.name("token"),
    }))
}

fn full_configuration() -> Value {
    json!({"VpcEgressConfiguration": {
        "SubnetIds": [OFFLINE_SUBNET], "SecurityGroupIds": ["sg-web"], "NetworkProtocol": "IPv4",
        "AssociatedComputeResourceTypes": ["MicroVm"], "ElasticIpConfiguration": {"Type": "None"},
    }})
}

fn new_full_connector(ground: &Ground) -> anyhow::Result<Value> {
    with(new_connector(ground)?, json!({"Configuration": full_configuration(), "Tags": {"team": "conformance"}}))
}

/// A connector that is there.
fn connector(ground: &Ground) -> anyhow::Result<Value> {
    let created = ground.call("CreateNetworkConnector", new_connector(ground)?)?;
    let identifier = json!({"Identifier": created["Id"]});
    until("the connector to be ACTIVE", Duration::from_secs(20), || {
        let connector = ground.call("GetNetworkConnector", identifier.clone())?;
        ensure!(connector["State"] == "ACTIVE", "{connector}");
        Ok(())
    })?;
    Ok(identifier)
}

/// The entries.
pub fn entries() -> &'static [Entry] {
    &[
        Entry {
            name: "CreateMicrovmImage",
            minimal: new_image,
            full: new_full_image,
            missing: &[],
            differs: "`X86_64` only; `logging` and `buildRoleArn` are checked and echoed, without effect: the build log is \
                      a file; a connector of one's own closes the VM of the snapshot and those launched from it, not \
                      the Dockerfile's steps",
        },
        Entry {
            name: "GetMicrovmImage",
            minimal: shared_image,
            full: shared_image,
            missing: &[(no_image, NOT_FOUND, NO_SUCH_IMAGE)],
            differs: "",
        },
        Entry {
            name: "ListMicrovmImages",
            minimal: nothing,
            full: |ground| {
                ground.front.image(json!({}))?;
                let mut parameters = json!({"maxResults": 1, "nameFilter": "image"});
                let page = ground.call("ListMicrovmImages", parameters.clone())?;
                parameters["nextToken"] = page["nextToken"].clone();
                Ok(parameters)
            },
            missing: &[],
            differs: "",
        },
        Entry {
            name: "DeleteMicrovmImage",
            minimal: fresh_image,
            full: fresh_image,
            missing: &[(no_image, NOT_FOUND, NO_SUCH_IMAGE)],
            differs: "",
        },
        Entry {
            name: "GetMicrovmImageVersion",
            minimal: shared_version,
            full: shared_version,
            missing: &[(no_version, NOT_FOUND, NO_SUCH_VERSION)],
            differs: "",
        },
        Entry {
            name: "ListMicrovmImageBuilds",
            minimal: shared_version,
            full: |ground| {
                let mut parameters = shared_version(ground)?;
                parameters["maxResults"] = json!(50);
                parameters["architecture"] = json!("X86_64");
                parameters["chipset"] = json!("INTEL");
                parameters["chipsetGeneration"] = json!("1");
                Ok(parameters)
            },
            missing: &[(no_version, NOT_FOUND, NO_SUCH_VERSION)],
            differs: "one build for each architecture of `cpuConfigurations`; the real service builds for two generations of `GRAVITON`",
        },
        Entry {
            name: "GetMicrovmImageBuild",
            minimal: |ground| {
                let mut parameters = shared_version(ground)?;
                parameters["buildId"] = json!(ground.build);
                Ok(parameters)
            },
            full: |ground| {
                let mut parameters = shared_version(ground)?;
                parameters["buildId"] = json!(ground.build);
                Ok(parameters)
            },
            missing: &[(
                |ground| json!({"imageIdentifier": ground.image, "imageVersion": "9.0", "buildId": ground.build}),
                NOT_FOUND,
                "",
            )],
            differs: "",
        },
        Entry {
            name: "UpdateMicrovmImage",
            minimal: |ground| with(definition(), fresh_image(ground)?),
            full: |ground| {
                let mut parameters = with(full_definition(), fresh_image(ground)?)?;
                parameters["clientToken"] = json!(ground.front.name("token"));
                Ok(parameters)
            },
            missing: &[(
                |_| with(definition(), json!({"imageIdentifier": NO_IMAGE})).unwrap_or_default(),
                NOT_FOUND,
                NO_SUCH_IMAGE,
            )],
            differs: "as `CreateMicrovmImage`",
        },
        Entry {
            name: "ListMicrovmImageVersions",
            minimal: shared_image,
            full: |ground| with(json!({"maxResults": 50}), shared_image(ground)?),
            missing: &[(no_image, NOT_FOUND, NO_SUCH_IMAGE)],
            differs: "",
        },
        Entry {
            name: "UpdateMicrovmImageVersion",
            minimal: |ground| with(json!({"imageVersion": "1.0", "status": "INACTIVE"}), fresh_image(ground)?),
            full: |ground| with(json!({"imageVersion": "1.0", "status": "ACTIVE"}), fresh_image(ground)?),
            missing: &[(
                |_| json!({"imageIdentifier": NO_IMAGE, "imageVersion": "1.0", "status": "ACTIVE"}),
                NOT_FOUND,
                NO_SUCH_VERSION,
            )],
            differs: "",
        },
        Entry {
            name: "DeleteMicrovmImageVersion",
            minimal: image_with_two_versions,
            full: image_with_two_versions,
            missing: &[(no_version, NOT_FOUND, NO_SUCH_VERSION)],
            differs: "",
        },
        Entry {
            name: "ListManagedMicrovmImages",
            minimal: nothing,
            full: |_| Ok(json!({"maxResults": 50})),
            missing: &[],
            differs: "",
        },
        Entry {
            name: "ListManagedMicrovmImageVersions",
            minimal: |_| Ok(json!({"imageIdentifier": e2e::image::BASE_IMAGE})),
            full: |_| Ok(json!({"imageIdentifier": e2e::image::BASE_IMAGE, "maxResults": 50})),
            missing: &[(
                |_| json!({"imageIdentifier": "arn:aws:lambda:us-east-1:aws:microvm-image:nothing"}),
                NOT_FOUND,
                "",
            )],
            differs: "",
        },
        Entry {
            name: "TagResource",
            minimal: |ground| Ok(json!({"Resource": ground.front.image(json!({}))?, "Tags": {"a": "1"}})),
            full: |ground| Ok(json!({"Resource": ground.front.image(json!({}))?, "Tags": {"a": "1", "b/c": ""}})),
            missing: &[(|_| json!({"Resource": NO_IMAGE, "Tags": {"a": "1"}}), NOT_FOUND, NO_SUCH_IMAGE)],
            differs: "",
        },
        Entry {
            name: "ListTags",
            minimal: |ground| Ok(json!({"Resource": ground.image})),
            full: |ground| Ok(json!({"Resource": ground.image})),
            missing: &[(|_| json!({"Resource": NO_IMAGE}), NOT_FOUND, NO_SUCH_IMAGE)],
            differs: "",
        },
        Entry {
            name: "UntagResource",
            minimal: |ground| Ok(json!({"Resource": ground.image, "TagKeys": ["never-there"]})),
            full: |ground| Ok(json!({"Resource": ground.image, "TagKeys": ["never-there", "nor-this"]})),
            missing: &[(|_| json!({"Resource": NO_IMAGE, "TagKeys": ["a"]}), NOT_FOUND, NO_SUCH_IMAGE)],
            differs: "",
        },
        Entry {
            name: "RunMicrovm",
            minimal: shared_image,
            full: full_run,
            missing: &[(
                no_image,
                NOT_FOUND,
                "No active version found for MicroVM image \
                 arn:aws:lambda:us-east-1:000000000000:microvm-image:nothing",
            )],
            differs: "`logging` and `executionRoleArn` are checked and echoed, without effect: no credentials are served \
                      in the guest; connectors of one's own are taken whose subnets do not lead to the internet",
        },
        Entry {
            name: "GetMicrovm",
            minimal: shared_microvm,
            full: shared_microvm,
            missing: &[(no_microvm, NOT_FOUND, NO_SUCH_MICROVM)],
            differs: "",
        },
        Entry {
            name: "ListMicrovms",
            minimal: nothing,
            full: |ground| {
                ground.front.microvm(&ground.image)?;
                let mut parameters = shared_version(ground)?;
                parameters["maxResults"] = json!(1);
                let page = ground.call("ListMicrovms", parameters.clone())?;
                parameters["nextToken"] = page["nextToken"].clone();
                Ok(parameters)
            },
            missing: &[],
            differs: "",
        },
        Entry {
            name: "SuspendMicrovm",
            minimal: fresh_microvm,
            full: fresh_microvm,
            missing: &[(no_microvm, NOT_FOUND, NO_SUCH_MICROVM)],
            differs: "",
        },
        Entry {
            name: "ResumeMicrovm",
            minimal: suspended_microvm,
            full: suspended_microvm,
            missing: &[(no_microvm, NOT_FOUND, NO_SUCH_MICROVM)],
            differs: "",
        },
        Entry {
            name: "TerminateMicrovm",
            minimal: fresh_microvm,
            full: fresh_microvm,
            missing: &[(no_microvm, NOT_FOUND, NO_SUCH_MICROVM)],
            differs: "",
        },
        Entry {
            name: "CreateMicrovmAuthToken",
            minimal: |ground| Ok(token(json!([{"port": 8080}]))(&ground.microvm)),
            full: |ground| {
                let ports = json!([{"port": 8080}, {"range": {"startPort": 1, "endPort": 2}}, {"allPorts": {}}]);
                Ok(token(ports)(&ground.microvm))
            },
            missing: &[(|_| token(json!([{"port": 8080}]))(NO_MICROVM), NOT_FOUND, NO_SUCH_MICROVM)],
            differs: "",
        },
        Entry {
            name: "CreateMicrovmShellAuthToken",
            minimal: shell,
            full: shell,
            missing: &[(
                |_| json!({"microvmIdentifier": NO_MICROVM, "expirationInMinutes": 5}),
                NOT_FOUND,
                NO_SUCH_MICROVM,
            )],
            differs: "",
        },
        Entry {
            name: "CreateNetworkConnector",
            minimal: new_connector,
            full: new_full_connector,
            missing: &[],
            differs: "subnets and security groups are those of the configuration; `DualStack` and `ServiceManaged` are \
                      refused; the role is checked for form",
        },
        Entry {
            name: "GetNetworkConnector",
            minimal: connector,
            full: connector,
            missing: &[(no_connector, NOT_FOUND, NO_CONNECTOR)],
            differs: "",
        },
        Entry {
            name: "UpdateNetworkConnector",
            minimal: |ground| with(json!({"ClientToken": ground.front.name("token")}), connector(ground)?),
            full: |ground| {
                let all = json!({
                    "Configuration": full_configuration(), "OperatorRole": ROLE,
                    "ClientToken": ground.front.name("token"),
                });
                with(all, connector(ground)?)
            },
            missing: &[(|_| json!({"Identifier": "nothing", "ClientToken": "t"}), NOT_FOUND, NO_CONNECTOR)],
            differs: "as `CreateNetworkConnector`",
        },
        Entry {
            name: "DeleteNetworkConnector",
            minimal: connector,
            full: connector,
            missing: &[(no_connector, NOT_FOUND, NO_CONNECTOR)],
            differs: "",
        },
        Entry {
            name: "ListNetworkConnectors",
            minimal: nothing,
            full: |ground| {
                connector(ground)?;
                connector(ground)?;
                let mut parameters = json!({"State": "ACTIVE", "MaxItems": 1});
                let page = ground.call("ListNetworkConnectors", parameters.clone())?;
                parameters["Marker"] = page["NextMarker"].clone();
                Ok(parameters)
            },
            missing: &[],
            differs: "",
        },
        Entry {
            name: "ListNetworkConnectorVersions",
            minimal: connector,
            full: |ground| with(json!({"State": "ACTIVE", "MaxItems": 100}), connector(ground)?),
            missing: &[(no_connector, NOT_FOUND, NO_CONNECTOR)],
            differs: "",
        },
    ]
}
