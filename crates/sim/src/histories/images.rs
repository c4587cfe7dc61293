//! Images in a history: the one that microVMs are launched from, which gets versions and loses some, and another that comes
//! and goes.

use std::collections::{BTreeMap, BTreeSet};

use api::{
    arn::ImageArn,
    error::ServiceError,
    host::{ImageRef, Layout},
    ids::ImageId,
    images::{
        CodeArtifact, CreateMicrovmImageRequest, DeleteMicrovmImageRequest, DeleteMicrovmImageVersionRequest,
        GetMicrovmImageRequest, GetMicrovmImageVersionResponse, HookSwitch, Hooks, ImageState,
        ListMicrovmImageVersionsRequest, MicrovmHooks, MicrovmImageHooks, UpdateMicrovmImageRequest, VersionRequest,
        VersionState, VersionStatus, base_image_arn,
    },
    page::PageRequest,
};
use control::http::Operations;

use super::{chance::Chance, server::Server, world::World};

/// The image that microVMs are launched from.
pub const IMAGE: &str = "app";

/// The one that comes and goes.
const OTHER: &str = "other";

/// What is known of an image.
#[derive(Debug, Clone, Copy)]
struct Known {
    id: ImageId,
    state: ImageState,
}

/// What the client of a history knows of its images.
#[derive(Default)]
pub struct Images {
    known: BTreeMap<&'static str, Known>,
    /// Somebody asked for the other one to go, and it may still do so.
    delete_asked: bool,
}

/// How an answer is written down: without the id that is another each time.
pub fn word(answer: Result<(), ServiceError>) -> &'static str {
    answer.map_or_else(|error| error.kind(), |()| "taken")
}

/// The ARN of an image.
pub fn arn(name: &str) -> ImageArn {
    ImageArn::new("us-east-1", "000000000000", name)
}

/// Asks for an image of this name.
pub fn creation(name: &str, hooked: bool) -> CreateMicrovmImageRequest {
    CreateMicrovmImageRequest { name: name.to_owned(), version: version(hooked), tags: None, client_token: None }
}

impl Images {
    /// Changes one of them, some way or other.
    pub async fn change(&mut self, chance: &mut Chance, server: &Server, world: &World, hooked: bool) {
        let (control, caller) = (&server.control, &server.caller);
        let update =
            |name| UpdateMicrovmImageRequest { image: arn(name), version: version(hooked), client_token: None };
        match chance.below(6) {
            0 | 1 => {
                let answer = control.update_microvm_image(caller, update(IMAGE)).await.map(drop);
                world.log(format_args!("update the image: {}", word(answer)));
            }
            2 => self.delete_version(chance, server, world).await,
            3 => {
                let answer = control.create_microvm_image(caller, creation(OTHER, hooked)).await.map(drop);
                world.log(format_args!("create the other image: {}", word(answer)));
            }
            4 => {
                let answer = control.update_microvm_image(caller, update(OTHER)).await.map(drop);
                world.log(format_args!("update the other image: {}", word(answer)));
            }
            _ => {
                // Whatever the answer is, it may have been taken.
                self.delete_asked = true;
                let answer =
                    control.delete_microvm_image(caller, DeleteMicrovmImageRequest { image: arn(OTHER) }).await;
                world.log(format_args!("delete the other image: {}", word(answer.map(drop))));
            }
        }
    }

    /// Asks for a version to go, but not for the one that is launched from.
    async fn delete_version(&self, chance: &mut Chance, server: &Server, world: &World) {
        let Ok(versions) = versions_of(server, IMAGE).await else { return };
        let newest = versions.iter().filter(|it| it.status == VersionStatus::Active).map(|it| it.image_version).max();
        let mut others: Vec<_> = versions.iter().map(|it| it.image_version).filter(|it| Some(*it) != newest).collect();
        others.sort();
        if others.is_empty() {
            return;
        }
        let version = chance.pick(&others).to_string();
        let request = DeleteMicrovmImageVersionRequest { image: arn(IMAGE), image_version: version.clone() };
        let answer = server.control.delete_microvm_image_version(&server.caller, request).await.map(drop);
        world.log(format_args!("delete version {version}: {}", word(answer)));
    }

    /// Looks at them, and says what is wrong with what it sees.
    pub async fn look(&mut self, server: &Server, world: &World) -> Result<(), String> {
        for name in [IMAGE, OTHER] {
            let request = GetMicrovmImageRequest { image: arn(name) };
            let now = match server.control.get_microvm_image(&server.caller, request).await {
                Ok(told) => Some(Known { id: told.id, state: told.state }),
                Err(ServiceError::ResourceNotFound { .. }) => None,
                Err(error) => {
                    world.log(format_args!("{error:?}"));
                    continue;
                }
            };
            let before = match now {
                Some(now) => self.known.insert(name, now),
                None => self.known.remove(name),
            };
            if before.map(|it| it.state) != now.map(|it| it.state) {
                world.log(format_args!("{name} is {}", now.map_or("gone".to_owned(), |it| it.state.to_string())));
            }
            self.may_be(name, before, now)?;
        }
        Ok(())
    }

    fn may_be(&mut self, name: &str, before: Option<Known>, now: Option<Known>) -> Result<(), String> {
        use ImageState as S;
        let may_go = name == OTHER && self.delete_asked;
        let (Some(before), Some(now)) = (before, now) else {
            self.delete_asked &= now.is_some();
            return if before.is_none() || may_go { Ok(()) } else { Err(format!("the image {name} is gone")) };
        };
        if before.id != now.id {
            return if may_go { Ok(()) } else { Err(format!("the image {name} is another one")) };
        }
        let legal = match now.state {
            S::Creating => before.state == S::Creating,
            S::Created | S::CreateFailed => before.state == now.state || before.state == S::Creating,
            S::Deleting | S::DeleteFailed => may_go,
            S::Updating | S::Updated | S::UpdateFailed => !matches!(before.state, S::Deleting | S::DeleteFailed),
            S::Deleted => false,
        };
        if legal { Ok(()) } else { Err(format!("the image {name} was {} and is {}", before.state, now.state)) }
    }

    /// Is one of them on its way to another state?
    pub fn moving(&self) -> Option<String> {
        let moves = |it: &Known| matches!(it.state, ImageState::Creating | ImageState::Updating | ImageState::Deleting);
        self.known.iter().find(|(_, it)| moves(it)).map(|(name, it)| format!("the image {name} is {}", it.state))
    }

    /// Compares what control says of versions with the files there are: of each that can be launched, all of them, and of
    /// any other nothing. One that could not be deleted may have some left.
    pub async fn compare(&self, server: &Server, layout: &Layout) -> Result<(), String> {
        let mut unknown = BTreeSet::new();
        for image in super::ending::names_in(&layout.data.join("images")) {
            let versions = super::ending::names_in(&layout.data.join("images").join(&image));
            unknown.extend(versions.into_iter().map(|version| (image.clone(), version)));
        }
        for (name, known) in &self.known {
            let versions = versions_of(server, name).await.map_err(|error| format!("no versions: {error:?}"))?;
            for version in versions {
                let image = ImageRef { image_id: known.id, version: version.image_version };
                let there = layout.version_dir(&image).join("snapshot.json").exists();
                let shown = format!("version {} of {name} is {}", version.image_version, version.state);
                let right = match version.state {
                    VersionState::Successful => there,
                    VersionState::DeleteFailed => true,
                    VersionState::Failed => !there,
                    _ => return Err(shown),
                };
                if !right && known.state != ImageState::DeleteFailed {
                    return Err(format!("{shown}, and its files are there: {there}"));
                }
                unknown.remove(&(known.id.to_string(), version.image_version.to_string()));
            }
        }
        match unknown.len() {
            0 => Ok(()),
            files => Err(format!("the files of {files} versions are nobody's")),
        }
    }
}

async fn versions_of(server: &Server, name: &str) -> Result<Vec<GetMicrovmImageVersionResponse>, ServiceError> {
    let page = PageRequest { max_results: None, next_token: None };
    let request = ListMicrovmImageVersionsRequest { image: arn(name), page };
    Ok(server.control.list_microvm_image_versions(&server.caller, request).await?.items)
}

fn version(hooked: bool) -> VersionRequest {
    let on = Some(HookSwitch::Enabled);
    let hooks = hooked.then(|| Hooks {
        port: Some(8080),
        microvm_hooks: Some(MicrovmHooks {
            run: on,
            resume: on,
            suspend: on,
            terminate: on,
            ..MicrovmHooks::default()
        }),
        microvm_image_hooks: Some(MicrovmImageHooks { ready: on, validate: on, ..MicrovmImageHooks::default() }),
    });
    VersionRequest {
        base_image_arn: base_image_arn("us-east-1"),
        base_image_version: None,
        build_role_arn: "arn:aws:iam::000000000000:role/build".into(),
        code_artifact: CodeArtifact { uri: "s3://bucket/app.zip".into() },
        description: None,
        logging: None,
        egress_network_connectors: None,
        cpu_configurations: None,
        resources: None,
        additional_os_capabilities: None,
        hooks,
        environment_variables: None,
        kms_key_identifier: None,
    }
}
