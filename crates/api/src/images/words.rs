//! States of images, versions and builds, and what an image can ask for by a word.

use crate::word::words;

words! {
    /// State of an image.
    ImageState {
        /// Its first version is being built.
        Creating = "CREATING",
        /// Its first version was built.
        Created = "CREATED",
        /// Its first version could not be built.
        CreateFailed = "CREATE_FAILED",
        /// A later version is being built or removed.
        Updating = "UPDATING",
        /// The last change succeeded.
        Updated = "UPDATED",
        /// The last change failed.
        UpdateFailed = "UPDATE_FAILED",
        /// It is being removed; its name is still taken.
        Deleting = "DELETING",
        /// It could not be removed.
        DeleteFailed = "DELETE_FAILED",
        /// It is gone.
        Deleted = "DELETED",
    }
}

words! {
    /// State of an image's version.
    VersionState {
        /// Not begun.
        Pending = "PENDING",
        /// Being built.
        InProgress = "IN_PROGRESS",
        /// Built.
        Successful = "SUCCESSFUL",
        /// Could not be built.
        Failed = "FAILED",
        /// Being removed.
        Deleting = "DELETING",
        /// Gone.
        Deleted = "DELETED",
        /// Could not be removed.
        DeleteFailed = "DELETE_FAILED",
    }
}

words! {
    /// Whether microVMs may be launched from a version.
    VersionStatus {
        /// They may.
        Active = "ACTIVE",
        /// They may not; those that run go on.
        Inactive = "INACTIVE",
    }
}

words! {
    /// State of one build of a version.
    BuildState {
        /// Not begun.
        Pending = "PENDING",
        /// Under way.
        InProgress = "IN_PROGRESS",
        /// Done.
        Successful = "SUCCESSFUL",
        /// Ended without a result.
        Failed = "FAILED",
    }
}

words! {
    /// Instruction set of a microVM.
    Architecture {
        /// 64-bit Arm.
        Arm64 = "ARM_64",
        /// 64-bit x86.
        X86_64 = "X86_64",
    }
}

words! {
    /// Family of processors a build is for.
    Chipset {
        /// Arm.
        Graviton = "GRAVITON",
        /// x86.
        Intel = "INTEL",
    }
}

impl Architecture {
    /// The architecture this program was compiled for, which is that of the guests it can run.
    pub const HOST: Self = if cfg!(target_arch = "aarch64") { Self::Arm64 } else { Self::X86_64 };

    /// The only chipset family the model has for it.
    #[must_use]
    pub fn chipset(self) -> Chipset {
        match self {
            Self::Arm64 => Chipset::Graviton,
            Self::X86_64 => Chipset::Intel,
        }
    }
}

words! {
    /// Extra rights of the app inside its guest.
    OsCapability {
        /// Every Linux capability.
        All = "ALL",
    }
}

words! {
    /// Whether a hook is called.
    HookSwitch {
        /// Never.
        Disabled = "DISABLED",
        /// At its moment.
        Enabled = "ENABLED",
    }
}
