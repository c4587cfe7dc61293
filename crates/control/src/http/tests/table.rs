//! What the operations answer in these tests.

use super::*;

#[async_trait::async_trait]
impl Resources for Table {
    async fn image_of_microvm(&self, identifier: &str) -> Result<Option<ImageArn>, ServiceError> {
        Ok((identifier == MICROVM).then(image_arn))
    }

    async fn connector_arn(&self, _: &str) -> Result<Option<String>, ServiceError> {
        Ok(None)
    }

    async fn egress_of_image(&self, _: &ImageArn, _: Option<&str>) -> Result<Vec<String>, ServiceError> {
        Ok(vec![ManagedConnector::InternetEgress.arn(REGION)])
    }
}

#[async_trait::async_trait]
impl Operations for Table {
    async fn create_microvm_image(
        &self,
        _: &Caller,
        request: CreateMicrovmImageRequest,
    ) -> Result<CreateMicrovmImageResponse, ServiceError> {
        let plan = request.version.plan(REGION, &[Architecture::X86_64])?;
        Ok(CreateMicrovmImageResponse {
            image_arn: image_arn(),
            name: request.name,
            id: image_id(),
            state: ImageState::Creating,
            image_version: ImageVersion::FIRST,
            latest_active_image_version: None,
            latest_failed_image_version: None,
            created_at: Timestamp::from_unix_ms(1_500),
            updated_at: Some(Timestamp::from_unix_ms(1_500)),
            configuration: plan.configuration,
            tags: request.tags,
        })
    }

    async fn get_microvm_image(
        &self,
        _: &Caller,
        request: GetMicrovmImageRequest,
    ) -> Result<GetMicrovmImageResponse, ServiceError> {
        if request.image != image_arn() {
            return Err(catalogue::unknown_image(&request.image));
        }
        Ok(GetMicrovmImageResponse {
            image_arn: request.image,
            name: "shop".into(),
            id: image_id(),
            state: ImageState::Created,
            latest_active_image_version: Some(ImageVersion::FIRST),
            latest_failed_image_version: None,
            created_at: Timestamp::from_unix_ms(1_500),
            updated_at: None,
            tags: Default::default(),
        })
    }

    async fn list_microvm_images(
        &self,
        _: &Caller,
        request: ListMicrovmImagesRequest,
    ) -> Result<ListMicrovmImagesResponse, ServiceError> {
        let summary = MicrovmImageSummary {
            image_arn: image_arn(),
            name: "shop".into(),
            id: image_id(),
            state: ImageState::Created,
            latest_active_image_version: None,
            latest_failed_image_version: None,
            created_at: Timestamp::from_unix_ms(1_500),
        };
        // What came in the query goes out again, so that a test can see how it was read.
        Ok(Page { items: vec![summary], next_token: request.page.next_token.or(request.name_filter) })
    }

    async fn get_microvm_image_version(
        &self,
        _: &Caller,
        request: GetMicrovmImageVersionRequest,
    ) -> Result<GetMicrovmImageVersionResponse, ServiceError> {
        let body = json!({
            "name": "shop",
            "baseImageArn": api::images::base_image_arn(REGION),
            "buildRoleArn": "arn:aws:iam::123456789012:role/build",
            "codeArtifact": { "uri": "s3://code/shop.zip" },
        });
        let create: CreateMicrovmImageRequest = serde_json::from_value(body).unwrap();
        Ok(GetMicrovmImageVersionResponse {
            image_arn: request.image,
            image_version: request.image_version.parse().unwrap(),
            state: VersionState::Successful,
            status: VersionStatus::Active,
            state_reason: None,
            configuration: create.version.plan(REGION, &[Architecture::X86_64])?.configuration,
            tags: None,
            created_at: Timestamp::from_unix_ms(1_500),
            updated_at: None,
        })
    }

    async fn list_microvm_image_builds(
        &self,
        _: &Caller,
        _: ListMicrovmImageBuildsRequest,
    ) -> Result<ListMicrovmImageBuildsResponse, ServiceError> {
        Ok(Page { items: vec![build()], next_token: None })
    }

    async fn get_microvm_image_build(
        &self,
        _: &Caller,
        _: GetMicrovmImageBuildRequest,
    ) -> Result<GetMicrovmImageBuildResponse, ServiceError> {
        Ok(GetMicrovmImageBuildResponse { build: build(), snapshot_build: None })
    }

    async fn delete_microvm_image(
        &self,
        _: &Caller,
        request: DeleteMicrovmImageRequest,
    ) -> Result<DeleteMicrovmImageResponse, ServiceError> {
        Ok(DeleteMicrovmImageResponse { image_identifier: request.image, state: ImageState::Deleting })
    }

    async fn update_microvm_image(
        &self,
        _: &Caller,
        _: UpdateMicrovmImageRequest,
    ) -> Result<UpdateMicrovmImageResponse, ServiceError> {
        Err(catalogue::internal_error())
    }

    async fn list_microvm_image_versions(
        &self,
        _: &Caller,
        _: ListMicrovmImageVersionsRequest,
    ) -> Result<ListMicrovmImageVersionsResponse, ServiceError> {
        Err(catalogue::internal_error())
    }

    async fn update_microvm_image_version(
        &self,
        _: &Caller,
        _: UpdateMicrovmImageVersionRequest,
    ) -> Result<UpdateMicrovmImageVersionResponse, ServiceError> {
        Err(catalogue::internal_error())
    }

    async fn delete_microvm_image_version(
        &self,
        _: &Caller,
        _: DeleteMicrovmImageVersionRequest,
    ) -> Result<DeleteMicrovmImageVersionResponse, ServiceError> {
        Err(catalogue::internal_error())
    }

    async fn list_managed_microvm_images(
        &self,
        _: &Caller,
        _: ListManagedMicrovmImagesRequest,
    ) -> Result<ListManagedMicrovmImagesResponse, ServiceError> {
        Err(catalogue::internal_error())
    }

    async fn list_managed_microvm_image_versions(
        &self,
        _: &Caller,
        _: ListManagedMicrovmImageVersionsRequest,
    ) -> Result<ListManagedMicrovmImageVersionsResponse, ServiceError> {
        Err(catalogue::internal_error())
    }

    async fn run_microvm(&self, _: &Caller, request: RunMicrovmRequest) -> Result<RunMicrovmResponse, ServiceError> {
        match request.image.name.as_str() {
            "full" => Err(catalogue::insufficient_capacity("it is full")),
            "busy" => Err(ServiceError::Throttling { message: "Rate exceeded".into(), retry_after_seconds: Some(2) }),
            "broken" => panic!("a bug"),
            _ => Ok(microvm()),
        }
    }

    async fn get_microvm(&self, _: &Caller, request: GetMicrovmRequest) -> Result<GetMicrovmResponse, ServiceError> {
        match request.microvm_identifier == MICROVM {
            true => Ok(microvm()),
            false => Err(catalogue::unknown_microvm(request.microvm_identifier)),
        }
    }

    async fn list_microvms(&self, _: &Caller, _: ListMicrovmsRequest) -> Result<ListMicrovmsResponse, ServiceError> {
        let GetMicrovmResponse { microvm_id, state, image_arn, image_version, started_at, .. } = microvm();
        Ok(Page {
            items: vec![MicrovmItem { microvm_id, state, image_arn, image_version, started_at }],
            next_token: None,
        })
    }

    async fn suspend_microvm(
        &self,
        _: &Caller,
        _: SuspendMicrovmRequest,
    ) -> Result<SuspendMicrovmResponse, ServiceError> {
        Ok(SuspendMicrovmResponse {})
    }

    async fn resume_microvm(&self, _: &Caller, _: ResumeMicrovmRequest) -> Result<ResumeMicrovmResponse, ServiceError> {
        Ok(ResumeMicrovmResponse {})
    }

    async fn terminate_microvm(
        &self,
        _: &Caller,
        _: TerminateMicrovmRequest,
    ) -> Result<TerminateMicrovmResponse, ServiceError> {
        Ok(TerminateMicrovmResponse {})
    }

    async fn create_microvm_shell_auth_token(
        &self,
        _: &Caller,
        _: CreateMicrovmShellAuthTokenRequest,
    ) -> Result<CreateMicrovmShellAuthTokenResponse, ServiceError> {
        Err(catalogue::internal_error())
    }

    async fn create_microvm_auth_token(
        &self,
        caller: &Caller,
        request: CreateMicrovmAuthTokenRequest,
    ) -> Result<CreateMicrovmAuthTokenResponse, ServiceError> {
        request.plan()?;
        Ok(CreateMicrovmAuthTokenResponse::new(caller.access_key_id.clone()))
    }

    async fn list_tags(&self, _: &Caller, request: ListTagsRequest) -> Result<ListTagsResponse, ServiceError> {
        Ok(ListTagsResponse { tags: [("of".to_owned(), request.resource)].into() })
    }

    async fn tag_resource(&self, _: &Caller, request: TagResourceRequest) -> Result<TagResourceResponse, ServiceError> {
        api::tags::check(&request.tags)?;
        Ok(TagResourceResponse {})
    }

    async fn untag_resource(
        &self,
        _: &Caller,
        request: UntagResourceRequest,
    ) -> Result<UntagResourceResponse, ServiceError> {
        match request.tag_keys.as_slice() {
            [_, _] => Ok(UntagResourceResponse {}),
            _ => Err(catalogue::resource_being_deleted(&request.resource)),
        }
    }

    async fn create_network_connector(
        &self,
        _: &Caller,
        request: CreateNetworkConnectorRequest,
    ) -> Result<NetworkConnector, ServiceError> {
        let plan = request.plan(&networks())?;
        let made = NetworkConnector { name: request.name, operator_role: Some(plan.operator_role), ..connector() };
        Ok(NetworkConnector { configuration: Some(request.configuration), ..made })
    }

    async fn get_network_connector(
        &self,
        _: &Caller,
        request: GetNetworkConnectorRequest,
    ) -> Result<NetworkConnector, ServiceError> {
        match request.identifier.as_str() {
            "office" => Ok(NetworkConnector {
                state: Some(NetworkConnectorState::Active),
                state_reason: Some("Initial creation".into()),
                last_modified: Some(IsoTimestamp(Timestamp::from_unix_ms(1_500))),
                ..connector()
            }),
            "broken" => Err(catalogue::internal_error()),
            other => Err(catalogue::connector_not_found(Identifier::as_arn(other, REGION, ACCOUNT))),
        }
    }

    async fn update_network_connector(
        &self,
        _: &Caller,
        request: UpdateNetworkConnectorRequest,
    ) -> Result<NetworkConnector, ServiceError> {
        request.plan(&networks())?;
        Ok(NetworkConnector {
            last_update_status: Some(LastUpdateStatus::InProgress),
            last_modified: Some(IsoTimestamp(Timestamp::from_unix_ms(1_500))),
            ..connector()
        })
    }

    async fn delete_network_connector(
        &self,
        _: &Caller,
        _: DeleteNetworkConnectorRequest,
    ) -> Result<NetworkConnector, ServiceError> {
        Ok(NetworkConnector { state: Some(NetworkConnectorState::Deleting), ..connector() })
    }

    async fn list_network_connectors(
        &self,
        _: &Caller,
        request: ListNetworkConnectorsRequest,
    ) -> Result<ListNetworkConnectorsResponse, ServiceError> {
        let NetworkConnector { arn, name, id, .. } = connector();
        let summary = NetworkConnectorSummary {
            latest_version_arn: format!("{arn}:1"),
            arn,
            name,
            id,
            kind: VPC_EGRESS.into(),
            state: request.page.state.unwrap_or(NetworkConnectorState::Active),
            last_modified: IsoTimestamp(Timestamp::from_unix_ms(1_500)),
            latest_version: 1,
        };
        Ok(ListNetworkConnectorsResponse { network_connectors: vec![summary], next_marker: request.page.marker })
    }

    async fn list_network_connector_versions(
        &self,
        _: &Caller,
        request: ListNetworkConnectorVersionsRequest,
    ) -> Result<ListNetworkConnectorVersionsResponse, ServiceError> {
        let NetworkConnector { arn, id, .. } = connector();
        let summary = NetworkConnectorVersionSummary {
            version_arn: format!("{arn}:1"),
            arn,
            name: request.identifier,
            id,
            version: 1,
            state: NetworkConnectorState::Failed,
            state_reason: Some("The subnet ID 'subnet-1' does not exist".into()),
            state_reason_code: Some(StateReasonCode::InvalidSubnet),
            last_modified: IsoTimestamp(Timestamp::from_unix_ms(1_500)),
        };
        Ok(ListNetworkConnectorVersionsResponse { network_connector_versions: vec![summary], next_marker: None })
    }
}
