//! Control as the HTTP front sees it: each operation is handed to the part that knows it, after `iam` has said that its
//! caller may. There is one account; a caller of another has nothing here.

use api::{
    arn::ImageArn,
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
        ListMicrovmsResponse, ResumeMicrovmRequest, ResumeMicrovmResponse, RunMicrovmRequest, RunMicrovmResponse,
        SuspendMicrovmRequest, SuspendMicrovmResponse, TerminateMicrovmRequest, TerminateMicrovmResponse,
    },
    tags::{
        ListTagsRequest, ListTagsResponse, TagResourceRequest, TagResourceResponse, UntagResourceRequest,
        UntagResourceResponse,
    },
};

use crate::{
    Control,
    auth::Caller,
    connectors::{lists, operations as connectors},
    http::Operations,
    iam::Resources,
    images::{managed, operations as images, versions},
    microvms::{admission::Request, operations as microvms},
    tags,
};

impl Control {
    fn admit(&self, caller: &Caller) -> Result<(), ServiceError> {
        if caller.account == self.shared.config.account {
            Ok(())
        } else {
            Err(ServiceError::AccessDenied { message: None })
        }
    }
}

#[async_trait::async_trait]
impl Resources for Control {
    async fn image_of_microvm(&self, identifier: &str) -> Result<Option<ImageArn>, ServiceError> {
        microvms::origin(&self.shared, identifier).await
    }

    async fn egress_of_image(&self, image: &ImageArn, version: Option<&str>) -> Result<Vec<String>, ServiceError> {
        microvms::inherited_egress(&self.shared, image, version).await
    }

    async fn connector_arn(&self, identifier: &str) -> Result<Option<String>, ServiceError> {
        connectors::known_arn(&self.shared, identifier).await
    }
}

macro_rules! operations {
    ($($method:ident($control:ident $(for $by:ident)?, $input:ident: $request:ident) -> $response:ident $answer:block)+) => {
        #[async_trait::async_trait]
        impl Operations for Control {
            fn longest_microvm_s(&self) -> u32 {
                self.shared.config.lifecycle.longest_of_all_s()
            }

            $(
                async fn $method(&self, caller: &Caller, $input: $request) -> Result<$response, ServiceError> {
                    self.admit(caller)?;
                    let $control = &self.shared;
                    $(let $by = caller;)?
                    $answer
                }
            )+
        }
    };
}

operations! {
    create_microvm_image(shared, request: CreateMicrovmImageRequest) -> CreateMicrovmImageResponse {
        images::create(shared, request).await
    }
    get_microvm_image(shared, request: GetMicrovmImageRequest) -> GetMicrovmImageResponse {
        images::get(shared, request).await
    }
    list_microvm_images(shared, request: ListMicrovmImagesRequest) -> ListMicrovmImagesResponse {
        images::list(shared, request).await
    }
    get_microvm_image_version(shared, request: GetMicrovmImageVersionRequest) -> GetMicrovmImageVersionResponse {
        versions::get(shared, request).await
    }
    list_microvm_image_builds(shared, request: ListMicrovmImageBuildsRequest) -> ListMicrovmImageBuildsResponse {
        versions::list_builds(shared, request).await
    }
    get_microvm_image_build(shared, request: GetMicrovmImageBuildRequest) -> GetMicrovmImageBuildResponse {
        versions::get_build(shared, request).await
    }
    delete_microvm_image(shared, request: DeleteMicrovmImageRequest) -> DeleteMicrovmImageResponse {
        images::remove(shared, request).await
    }
    update_microvm_image(shared, request: UpdateMicrovmImageRequest) -> UpdateMicrovmImageResponse {
        images::update(shared, request).await
    }
    list_microvm_image_versions(shared, request: ListMicrovmImageVersionsRequest) -> ListMicrovmImageVersionsResponse {
        versions::list(shared, request).await
    }
    update_microvm_image_version(shared, request: UpdateMicrovmImageVersionRequest) -> UpdateMicrovmImageVersionResponse {
        versions::set_status(shared, request).await
    }
    delete_microvm_image_version(shared, request: DeleteMicrovmImageVersionRequest) -> DeleteMicrovmImageVersionResponse {
        versions::remove(shared, request).await
    }
    list_managed_microvm_images(shared, request: ListManagedMicrovmImagesRequest) -> ListManagedMicrovmImagesResponse {
        managed::list(shared, &request)
    }
    list_managed_microvm_image_versions(shared, request: ListManagedMicrovmImageVersionsRequest) -> ListManagedMicrovmImageVersionsResponse {
        managed::list_versions(shared, &request)
    }
    run_microvm(shared for caller, request: RunMicrovmRequest) -> RunMicrovmResponse {
        microvms::run(shared, caller, request).await
    }
    get_microvm(shared, request: GetMicrovmRequest) -> GetMicrovmResponse {
        microvms::get(shared, &request.microvm_identifier).await
    }
    list_microvms(shared, request: ListMicrovmsRequest) -> ListMicrovmsResponse {
        microvms::list(shared, request).await
    }
    suspend_microvm(shared, request: SuspendMicrovmRequest) -> SuspendMicrovmResponse {
        microvms::ask(shared, &request.microvm_identifier, Request::Suspend).await?;
        Ok(SuspendMicrovmResponse {})
    }
    resume_microvm(shared, request: ResumeMicrovmRequest) -> ResumeMicrovmResponse {
        microvms::ask(shared, &request.microvm_identifier, Request::Resume).await?;
        Ok(ResumeMicrovmResponse {})
    }
    terminate_microvm(shared, request: TerminateMicrovmRequest) -> TerminateMicrovmResponse {
        microvms::ask(shared, &request.microvm_identifier, Request::Terminate).await?;
        Ok(TerminateMicrovmResponse {})
    }
    create_microvm_auth_token(shared, request: CreateMicrovmAuthTokenRequest) -> CreateMicrovmAuthTokenResponse {
        microvms::create_token(shared, &request)
    }
    list_tags(shared, request: ListTagsRequest) -> ListTagsResponse {
        tags::list(shared, request).await
    }
    tag_resource(shared, request: TagResourceRequest) -> TagResourceResponse {
        tags::add(shared, request).await
    }
    untag_resource(shared, request: UntagResourceRequest) -> UntagResourceResponse {
        tags::take(shared, request).await
    }
    create_microvm_shell_auth_token(shared, request: CreateMicrovmShellAuthTokenRequest) -> CreateMicrovmShellAuthTokenResponse {
        microvms::create_shell_token(shared, &request)
    }
    create_network_connector(shared, request: CreateNetworkConnectorRequest) -> NetworkConnector {
        connectors::create(shared, request).await
    }
    get_network_connector(shared, request: GetNetworkConnectorRequest) -> NetworkConnector {
        connectors::get(shared, request).await
    }
    update_network_connector(shared, request: UpdateNetworkConnectorRequest) -> NetworkConnector {
        connectors::update(shared, request).await
    }
    delete_network_connector(shared, request: DeleteNetworkConnectorRequest) -> NetworkConnector {
        connectors::remove(shared, request).await
    }
    list_network_connectors(shared, request: ListNetworkConnectorsRequest) -> ListNetworkConnectorsResponse {
        lists::list(shared, request).await
    }
    list_network_connector_versions(shared, request: ListNetworkConnectorVersionsRequest) -> ListNetworkConnectorVersionsResponse {
        lists::list_versions(shared, request).await
    }
}
