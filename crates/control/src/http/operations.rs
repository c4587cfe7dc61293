//! The service's operations, as something answers them.

use api::{
    error::ServiceError,
    images::{
        CreateMicrovmImageRequest, CreateMicrovmImageResponse, DeleteMicrovmImageRequest, DeleteMicrovmImageResponse,
        GetMicrovmImageBuildRequest, GetMicrovmImageBuildResponse, GetMicrovmImageRequest, GetMicrovmImageResponse,
        GetMicrovmImageVersionRequest, GetMicrovmImageVersionResponse, ListMicrovmImageBuildsRequest,
        ListMicrovmImageBuildsResponse, ListMicrovmImagesRequest, ListMicrovmImagesResponse,
    },
    microvms::{
        CreateMicrovmAuthTokenRequest, CreateMicrovmAuthTokenResponse, GetMicrovmRequest, GetMicrovmResponse,
        ListMicrovmsRequest, ListMicrovmsResponse, ResumeMicrovmRequest, ResumeMicrovmResponse, RunMicrovmRequest,
        RunMicrovmResponse, SuspendMicrovmRequest, SuspendMicrovmResponse, TerminateMicrovmRequest,
        TerminateMicrovmResponse,
    },
};

use crate::{auth::Caller, iam::Resources};

macro_rules! operations {
    ($($(#[$doc:meta])* $method:ident: $request:ident => $response:ident;)+) => {
        /// Whoever answers the operations: control itself, or whatever stands in for it in a test. The shape of a
        /// request has been checked before it comes here, and its caller may make it; everything else is decided here.
        #[async_trait::async_trait]
        pub trait Operations: Resources {
            $(
                $(#[$doc])*
                async fn $method(&self, caller: &Caller, request: $request) -> Result<$response, ServiceError>;
            )+
        }
    };
}

operations! {
    /// Creates an image and starts the build of its first version.
    create_microvm_image: CreateMicrovmImageRequest => CreateMicrovmImageResponse;
    /// Describes an image.
    get_microvm_image: GetMicrovmImageRequest => GetMicrovmImageResponse;
    /// Lists images.
    list_microvm_images: ListMicrovmImagesRequest => ListMicrovmImagesResponse;
    /// Describes a version of an image.
    get_microvm_image_version: GetMicrovmImageVersionRequest => GetMicrovmImageVersionResponse;
    /// Lists the builds of a version.
    list_microvm_image_builds: ListMicrovmImageBuildsRequest => ListMicrovmImageBuildsResponse;
    /// Describes a build.
    get_microvm_image_build: GetMicrovmImageBuildRequest => GetMicrovmImageBuildResponse;
    /// Begins to delete an image.
    delete_microvm_image: DeleteMicrovmImageRequest => DeleteMicrovmImageResponse;
    /// Begins to launch a microVM.
    run_microvm: RunMicrovmRequest => RunMicrovmResponse;
    /// Describes a microVM.
    get_microvm: GetMicrovmRequest => GetMicrovmResponse;
    /// Lists microVMs.
    list_microvms: ListMicrovmsRequest => ListMicrovmsResponse;
    /// Begins to suspend a microVM.
    suspend_microvm: SuspendMicrovmRequest => SuspendMicrovmResponse;
    /// Begins to resume a microVM.
    resume_microvm: ResumeMicrovmRequest => ResumeMicrovmResponse;
    /// Begins to end a microVM.
    terminate_microvm: TerminateMicrovmRequest => TerminateMicrovmResponse;
    /// Makes a token for a microVM's endpoint.
    create_microvm_auth_token: CreateMicrovmAuthTokenRequest => CreateMicrovmAuthTokenResponse;
}
