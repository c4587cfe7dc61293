//! After a restart: what should be, compared with what is found. Everything known is brought to a true state,
//! everything unknown is removed: processes, namespaces, files.

use std::{collections::HashSet, io, path::Path, time::Duration};

use api::{
    host::{Found, HostError, ImageRef, MicrovmSpec},
    ids::MicrovmId,
};

use vmm::RunState;

use crate::{
    agent::Life,
    files::{self, MicrovmFiles},
    launch,
    local::LocalHost,
    machine::Machine,
    platform::SharedVm,
    verbs::{blocking, forget_machine, reason_of},
};

/// How often a VM that a daemon left is tried to be taken over before it is given up, and the pause between two tries.
const ATTACH_TRIES: u32 = 5;
const ATTACH_PAUSE: Duration = Duration::from_secs(1);

/// Log directories of ended microVMs that are kept; the oldest go first.
const ENDED_LOGS_KEPT: usize = 500;

impl LocalHost {
    pub(crate) async fn reconcile_all(
        &self,
        microvms: &[MicrovmSpec],
        images: &[ImageRef],
    ) -> Result<Vec<(MicrovmId, Found)>, HostError> {
        let mut found = Vec::with_capacity(microvms.len());
        let mut namespaces = Vec::new();
        let mut processes = HashSet::new();
        for spec in microvms {
            let state = match self.look_for(spec).await {
                Look::Running(machine) => {
                    namespaces.push(machine.namespace.name().to_owned());
                    processes.extend(machine.vm.pids());
                    Found::Running(self.admit(*machine))
                }
                Look::Suspended => Found::Suspended,
                Look::Nothing => Found::Nothing,
            };
            tracing::info!(microvm = %spec.microvm_id, ?state, "found after the restart");
            found.push((spec.microvm_id, state));
        }
        self.platform.end_strays(&processes).await;
        self.platform.sweep_networks(&namespaces).await;
        if let Err(error) = self.platform.sweep_builds().await {
            // Costs disk, not correctness: builds have names of their own.
            tracing::error!(error = reason_of("remains of builds stay", &error), "the builder could not be swept");
        }
        let known = found
            .iter()
            .filter(|(_, state)| *state != Found::Nothing)
            .map(|(microvm_id, _)| microvm_id.to_string())
            .collect();
        self.remove_unknown_files(known, images).await.map_err(|error| HostError::Unchanged {
            reason: reason_of("Files left behind could not be removed", &error),
        })?;
        self.platform.prepare_ahead();
        let preparing = tokio::spawn(Self::keep_ready(self.itself.clone()));
        *self.preparing.lock().expect("no holder of this lock panics") = Some(preparing);
        let count = |it: fn(&Found) -> bool| found.iter().filter(|(_, found)| it(found)).count();
        tracing::info!(
            running = count(|it| matches!(it, Found::Running(_))),
            suspended = count(|it| *it == Found::Suspended),
            lost = count(|it| *it == Found::Nothing),
            images = images.len(),
            "what should be has been compared with what is there"
        );
        Ok(found)
    }

    async fn look_for(&self, spec: &MicrovmSpec) -> Look {
        let files = self.microvm_files(&spec.microvm_id);
        let vm = self.attach(spec, &files).await;
        if files.suspended().manifest().exists() {
            // Suspended for good before the daemon died; a VM still there is the one that was being ended.
            if let Some(vm) = vm {
                launch::end_vm(&*vm).await;
            }
            forget_machine(&files).await;
            return Look::Suspended;
        }
        match vm {
            Some(vm) if files.launched_mark().exists() => match self.take_over(spec, &files, vm).await {
                Ok(machine) => Look::Running(Box::new(machine)),
                Err(reason) => {
                    tracing::error!(microvm = %spec.microvm_id, reason, "a VM could not be taken over");
                    Look::Nothing
                }
            },
            Some(vm) => {
                launch::end_vm(&*vm).await;
                Look::Nothing
            }
            None => Look::Nothing,
        }
    }

    /// Finds the VM that there is, and does not give up a session for one failure: a VMM may be busy, or in the hands of
    /// a server that is just ending.
    async fn attach(&self, spec: &MicrovmSpec, files: &MicrovmFiles) -> Option<SharedVm> {
        let mut tries = 1;
        loop {
            match self.platform.attach(&files.vm_dir()).await {
                Ok(vm) => return vm,
                Err(error) => {
                    let error = reason_of("not taken over", &error);
                    tracing::warn!(microvm = %spec.microvm_id, error, tries, "a VM cannot be taken over");
                }
            }
            if tries == ATTACH_TRIES {
                // Its process, if there is one, is found among the strays.
                return None;
            }
            tokio::time::sleep(ATTACH_PAUSE).await;
            tries += 1;
        }
    }

    async fn take_over(&self, spec: &MicrovmSpec, files: &MicrovmFiles, vm: SharedVm) -> Result<Machine, String> {
        let Some(record) = files.read_machine_record().await else {
            launch::end_vm(&*vm).await;
            return Err("its record cannot be read".to_owned());
        };
        let remove = async |dir: &Path| {
            if let Err(error) = files::remove_dir(dir.to_owned()).await {
                tracing::warn!(microvm = %spec.microvm_id, %error, "cannot remove a half suspend snapshot");
            }
        };
        // A half-written suspend snapshot is of no use: the VM still has everything. But it says that the guest may have stood
        // still, and stays, or comes, until the guest knows: it may be set going and this daemon die before it is told.
        let suspending = files.suspending();
        let ran = !suspending.dir().exists() && matches!(vm.run_state().await, Ok(RunState::Running));
        if !ran && let Err(error) = tokio::fs::create_dir_all(suspending.dir()).await {
            tracing::warn!(microvm = %spec.microvm_id, %error, "cannot note that a guest stood still");
        }
        // A used one is removed when its resume is complete; this one may not even have told the guest.
        let life = match files.resumed().dir().exists() {
            true => Life::Begins,
            false if ran => Life::Ran,
            false => Life::GoesOn,
        };
        let machine = launch::adopt(&self.config, &*self.platform, spec, files, vm, &record, life)
            .await
            .map_err(|error| reason_of("it does not answer", &error))?;
        remove(files.resumed().dir()).await;
        remove(suspending.dir()).await;
        Ok(machine)
    }

    async fn remove_unknown_files(&self, microvms: HashSet<String>, images: &[ImageRef]) -> io::Result<()> {
        let layout = self.config.layout.clone();
        let images: HashSet<_> = images.iter().map(|image| layout.version_dir(image)).collect();
        blocking(move || {
            remove_all_but(&layout.data.join("microvms"), |name| microvms.contains(name))?;
            remove_all_but(&layout.data.join("builds"), |_| false)?;
            remove_all_but(&layout.data.join("ready"), |_| false)?;
            for image in std::fs::read_dir(layout.data.join("images"))? {
                let image = image?;
                if !image.file_type()?.is_dir() {
                    continue;
                }
                let image = image.path();
                remove_all_but(&image, |version| images.contains(&image.join(version)))?;
                // Stays if a version is in it.
                let _ = std::fs::remove_dir(&image);
            }
            prune_logs(&layout.data.join("logs/microvms"), &microvms)
        })
        .await
    }
}

/// What is there of a microVM.
enum Look {
    Running(Box<Machine>),
    Suspended,
    Nothing,
}

fn remove_all_but(dir: &Path, keep: impl Fn(&str) -> bool) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(&keep) {
            continue;
        }
        tracing::info!(path = %entry.path().display(), "removing files left behind");
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn prune_logs(dir: &Path, live: &HashSet<String>) -> io::Result<()> {
    let mut ended = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if !entry.file_name().to_str().is_some_and(|name| live.contains(name)) {
            ended.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    ended.sort();
    let surplus = ended.len().saturating_sub(ENDED_LOGS_KEPT);
    for (_, path) in ended.into_iter().take(surplus) {
        std::fs::remove_dir_all(path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_stays() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        std::fs::write(dir.path().join("c"), "x").unwrap();
        remove_all_but(dir.path(), |name| name == "b").unwrap();
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["b"]);
    }
}
