//! The read-only disk that an image becomes.

use std::path::Path;

use crate::{
    Cause,
    buildah::Store,
    process::{Bounds, End},
};

/// Mounts a container of the image and packs what is seen there. The mount ends with the script's namespace.
///
/// Uncompressed: unpacking costs an emulated processor more than reading costs the disk, and pages of the file are
/// shared by all microVMs as they are. Times, owners and extended attributes stay what they are in the image.
const PACK: &str = r#"
container=$("$@" from --quiet --pull=never "$IMAGE")
root=$("$@" mount "$container")
du --summarize --apparent-size --block-size=1 --one-file-system -- "$root" | cut -f1
mkfs.erofs --quiet --preserve-mtime "$DISK" "$root" >&2
sync "$DISK"
"#;

/// Writes the root disk of an image to `disk`; returns the bytes of the files in it.
pub(crate) async fn pack(store: &Store, image: &str, disk: &Path, bounds: &Bounds<'_>) -> Result<u64, Cause> {
    // Beside the final name, so that the renaming is one step of one file system.
    let mut new = disk.as_os_str().to_owned();
    new.push(".new");
    let new = Path::new(&new);
    let made = make(store, image, new, bounds).await;
    let renamed = match made {
        Ok(bytes) => tokio::fs::rename(new, disk).await.map(|()| bytes).map_err(|source| Cause::File {
            step: "renaming to",
            path: disk.to_owned(),
            source,
        }),
        Err(cause) => Err(cause),
    };
    if renamed.is_err() {
        let _ = tokio::fs::remove_file(new).await;
    }
    renamed
}

async fn make(store: &Store, image: &str, disk: &Path, bounds: &Bounds<'_>) -> Result<u64, Cause> {
    let step = "packing the root disk";
    let tool = store.script(bounds.job, PACK).env("IMAGE", image).env("DISK", disk);
    let answer = match tool.run_for_answer(bounds).await {
        End::Done(answer) => answer,
        End::Failed(source) => return Err(Cause::Step { step, source }),
        End::Stopped(cause) => return Err(cause),
    };
    let bytes = String::from_utf8_lossy(&answer);
    bytes.trim().parse().map_err(|_| Cause::File {
        step: "weighing what is packed into",
        path: disk.to_owned(),
        source: std::io::Error::other(format!("{bytes:?} is no number of bytes")),
    })
}
