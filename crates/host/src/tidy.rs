//! Now and then, while everything goes on: what is nobody's goes. A start does the same more thoroughly, because then nothing
//! goes on; see [`crate::reconcile`].
//!
//! Two things keep this from touching what somebody works on. Files are listed first, and only then it is asked whose they
//! are: their owner is on record before they are made, and their names are never used again. Networks, and with them
//! the users that VMMs run as, are claimed before they are touched.

use std::{collections::HashSet, io, path::Path, str::FromStr};

use api::{
    host::{Holdings, HostError, ImageRef},
    ids::{BuildId, ImageId, ImageVersion, MicrovmId},
};

use crate::{
    files::{self, MicrovmFiles},
    local::LocalHost,
    verbs::{blocking, reason_of},
};

impl LocalHost {
    pub(crate) async fn list_files(&self) -> Result<Holdings, HostError> {
        let data = self.config.layout.data.clone();
        let listed = blocking(move || {
            let mut images = Vec::new();
            for image_id in named::<ImageId>(&data.join("images"))? {
                let versions = named::<ImageVersion>(&data.join("images").join(image_id.to_string()))?;
                images.extend(versions.into_iter().map(|version| ImageRef { image_id, version }));
            }
            Ok(Holdings { microvms: named(&data.join("microvms"))?, images })
        });
        listed.await.map_err(|error| unchanged("The files of microVMs could not be listed", &error))
    }

    pub(crate) async fn remove_nobodys(&self, nobodys: &Holdings) -> Result<(), HostError> {
        for microvm in &nobodys.microvms {
            // Nobody has a record of it, and so nobody should run it; but what runs is not torn from its files.
            if self.machine(microvm).is_some() {
                tracing::error!(%microvm, "a microVM runs that nobody has a record of");
                continue;
            }
            tracing::info!(%microvm, "removing a microVM that nobody has a record of");
            let files = self.microvm_files(microvm);
            self.end_unwatched(&files).await?;
            let removed = files::remove_dir(files.dir().clone()).await;
            removed.map_err(|error| unchanged("A microVM's files could not be removed", &error))?;
        }
        for image in &nobodys.images {
            tracing::info!(image = %image.image_id, version = %image.version, "removing an image version left behind");
            self.remove_image_files(image).await?;
        }
        self.remove_dead_builds().await.map_err(|error| unchanged("Files of builds could not be removed", &error))?;
        let recorded = self.recorded_networks().await;
        let recorded = recorded.map_err(|error| unchanged("The records of VMs could not be listed", &error))?;
        self.platform.reclaim(&recorded).await;
        Ok(())
    }

    async fn remove_dead_builds(&self) -> io::Result<()> {
        let data = self.config.layout.data.clone();
        for build in blocking(move || named::<BuildId>(&data.join("builds"))).await? {
            if !self.building.lock().expect("no holder of this lock panics").contains(&build) {
                tracing::info!(%build, "removing the files of a build that does not go on");
                files::remove_dir(self.config.layout.build_dir(&build)).await?;
            }
        }
        Ok(())
    }

    /// The networks that the records of VMs name.
    async fn recorded_networks(&self) -> io::Result<HashSet<String>> {
        let microvms = self.config.layout.data.join("microvms");
        let mut recorded = HashSet::new();
        for microvm in blocking(move || named::<MicrovmId>(&microvms)).await? {
            let files = MicrovmFiles::of(&self.config.layout, &microvm);
            recorded.extend(files.read_machine_record().await.map(|record| record.namespace));
        }
        Ok(recorded)
    }
}

/// The entries of a directory that have a name of this kind; none if there is no such directory.
fn named<T: FromStr>(dir: &Path) -> io::Result<Vec<T>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let names: io::Result<Vec<_>> = entries.map(|entry| entry.map(|entry| entry.file_name())).collect();
    Ok(names?.iter().filter_map(|name| name.to_str()?.parse().ok()).collect())
}

fn unchanged(what: &str, error: &dyn std::error::Error) -> HostError {
    HostError::Unchanged { reason: reason_of(what, error) }
}
