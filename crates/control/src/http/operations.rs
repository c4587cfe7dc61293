//! The service's operations, as something answers them.

use api::{
    connectors::{
        CreateNetworkConnectorRequest, DeleteNetworkConnectorRequest, GetNetworkConnectorRequest,
        ListNetworkConnectorVersionsRequest, ListNetworkConnectorVersionsResponse, ListNetworkConnectorsRequest,
        ListNetworkConnectorsResponse, NetworkConnector, UpdateNetworkConnectorRequest,
    },
    error::ServiceError,
    images::{
        CreateMicrovmImageRequest, CreateMicrovmImageResponse, DeleteMicrovmImageRequest, DeleteMicrovmImageResponse,
        DeleteMicrovmImageVersionRequest, DeleteMicrovmImageVersionResponse, GetMicrovmImageBuildRequest,
        GetMicrovmImageBuildResponse, GetMicrovmImageRequest, GetMicrovmImageResponse, GetMicrovmImageVersionRequest,
        GetMicrovmImageVersionResponse, ListManagedMicrovmImageVersionsRequest,
        ListManagedMicrovmImageVersionsResponse, ListManagedMicrovmImagesRequest, ListManagedMicrovmImagesResponse,
        ListMicrovmImageBuildsRequest, ListMicrovmImageBuildsResponse, ListMicrovmImageVersionsRequest,
        ListMicrovmImageVersionsResponse, ListMicrovmImagesRequest, ListMicrovmImagesResponse,
        UpdateMicrovmImageRequest, UpdateMicrovmImageResponse, UpdateMicrovmImageVersionRequest,
        UpdateMicrovmImageVersionResponse,
    },
    microvms::{
        CreateMicrovmAuthTokenRequest, CreateMicrovmAuthTokenResponse, CreateMicrovmShellAuthTokenRequest,
        CreateMicrovmShellAuthTokenResponse, GetMicrovmRequest, GetMicrovmResponse, ListMicrovmsRequest,
        ListMicrovmsResponse, MAXIMUM_DURATION_SECONDS, ResumeMicrovmRequest, ResumeMicrovmResponse, RunMicrovmRequest,
        RunMicrovmResponse, SuspendMicrovmRequest, SuspendMicrovmResponse, TerminateMicrovmRequest,
        TerminateMicrovmResponse,
    },
    tags::{
        ListTagsRequest, ListTagsResponse, TagResourceRequest, TagResourceResponse, UntagResourceRequest,
        UntagResourceResponse,
    },
};

use crate::{auth::Caller, iam::Resources};

macro_rules! operations {
    ($($(#[$doc:meta])* $method:ident: $request:ident => $response:ident;)+) => {
        /// Whoever answers the operations: control itself, or whatever stands in for it in a test. The shape of a
        /// request has been checked before it comes here, and its caller may make it; everything else is decided here.
        #[async_trait::async_trait]
        pub trait Operations: Resources {
            /// Longest `maximumDurationInSeconds` of any image, in seconds; a longer one is of the wrong shape.
            fn longest_microvm_s(&self) -> u32 {
                MAXIMUM_DURATION_SECONDS
            }

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
    /// Begins to build another version of an image.
    update_microvm_image: UpdateMicrovmImageRequest => UpdateMicrovmImageResponse;
    /// Lists the versions of an image.
    list_microvm_image_versions: ListMicrovmImageVersionsRequest => ListMicrovmImageVersionsResponse;
    /// Lets microVMs be launched from a version, or no more.
    update_microvm_image_version: UpdateMicrovmImageVersionRequest => UpdateMicrovmImageVersionResponse;
    /// Begins to delete a version of an image.
    delete_microvm_image_version: DeleteMicrovmImageVersionRequest => DeleteMicrovmImageVersionResponse;
    /// Lists the images that images can be built on.
    list_managed_microvm_images: ListManagedMicrovmImagesRequest => ListManagedMicrovmImagesResponse;
    /// Lists the versions of such an image.
    list_managed_microvm_image_versions: ListManagedMicrovmImageVersionsRequest => ListManagedMicrovmImageVersionsResponse;
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
    /// Lists the tags of a resource.
    list_tags: ListTagsRequest => ListTagsResponse;
    /// Adds tags to a resource.
    tag_resource: TagResourceRequest => TagResourceResponse;
    /// Takes tags from a resource.
    untag_resource: UntagResourceRequest => UntagResourceResponse;
    /// Makes a token for a shell in a microVM.
    create_microvm_shell_auth_token: CreateMicrovmShellAuthTokenRequest => CreateMicrovmShellAuthTokenResponse;
    /// Begins to make a network connector.
    create_network_connector: CreateNetworkConnectorRequest => NetworkConnector;
    /// Describes a network connector, or a version of it.
    get_network_connector: GetNetworkConnectorRequest => NetworkConnector;
    /// Begins to make another version of a network connector.
    update_network_connector: UpdateNetworkConnectorRequest => NetworkConnector;
    /// Begins to delete a network connector, or a version of it.
    delete_network_connector: DeleteNetworkConnectorRequest => NetworkConnector;
    /// Lists network connectors.
    list_network_connectors: ListNetworkConnectorsRequest => ListNetworkConnectorsResponse;
    /// Lists the versions of a network connector.
    list_network_connector_versions: ListNetworkConnectorVersionsRequest => ListNetworkConnectorVersionsResponse;
}
