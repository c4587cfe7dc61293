//! The microVMs there are, in memory: the way of every request to an endpoint, with no database on it.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use api::{
    connector::ManagedConnector,
    directory::Behind,
    ids::{EndpointId, MicrovmId},
};

use super::handle::Handle;
use crate::links::Links;

#[derive(Debug, Default)]
struct Maps {
    by_id: HashMap<MicrovmId, Arc<Handle>>,
    by_endpoint: HashMap<EndpointId, (Behind, Arc<Handle>)>,
}

/// Handles by id and by endpoint. A microVM that has ended stays for as long as its record does.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    maps: RwLock<Maps>,
}

impl Registry {
    /// Adds a microVM. The endpoint of one that no connector lets anything into leads nowhere.
    pub(crate) fn insert(&self, handle: Arc<Handle>, region: &str, links: &Links) {
        let has = |connector: ManagedConnector| handle.contract.ingress.contains(&connector.arn(region));
        let all = has(ManagedConnector::AllIngress);
        let open = !has(ManagedConnector::NoIngress);
        let http = open && (has(ManagedConnector::HttpIngress) || all);
        // As with the tokens: the connector for everything is not one for shells, and tolerates none beside it.
        let shell = open && has(ManagedConnector::ShellIngress) && !all;
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        if http || shell {
            let links = links.are_allowed(&handle.contract.image_arn.name);
            let behind = Behind { microvm: handle.microvm_id, size: handle.size, http, shell, links, ended: false };
            maps.by_endpoint.insert(handle.endpoint, (behind, Arc::clone(&handle)));
        }
        maps.by_id.insert(handle.microvm_id, handle);
    }

    /// The microVM of this id.
    pub(crate) fn get(&self, id: &MicrovmId) -> Option<Arc<Handle>> {
        self.maps.read().unwrap_or_else(PoisonError::into_inner).by_id.get(id).cloned()
    }

    /// What is behind this endpoint.
    pub(crate) fn behind(&self, endpoint: &EndpointId) -> Option<Behind> {
        let maps = self.maps.read().unwrap_or_else(PoisonError::into_inner);
        let (behind, handle) = maps.by_endpoint.get(endpoint)?;
        Some(Behind { ended: handle.has_ended(), ..*behind })
    }

    /// Restarts a microVM's idle clock.
    pub(crate) fn touch(&self, id: &MicrovmId) {
        if let Some(handle) = self.maps.read().unwrap_or_else(PoisonError::into_inner).by_id.get(id) {
            handle.touch();
        }
    }

    /// Forgets a microVM.
    pub(crate) fn remove(&self, id: &MicrovmId) {
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = maps.by_id.remove(id) {
            maps.by_endpoint.remove(&handle.endpoint);
        }
    }
}
