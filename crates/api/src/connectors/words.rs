//! The sets of words of connectors.

use crate::word::words;

words! {
    /// State of a connector, or of one version of it.
    NetworkConnectorState {
        /// Being made.
        Pending = "PENDING",
        /// It can be used.
        Active = "ACTIVE",
        /// It cannot be used for a while.
        Inactive = "INACTIVE",
        /// It could not be made.
        Failed = "FAILED",
        /// Being removed.
        Deleting = "DELETING",
        /// It could not be removed.
        DeleteFailed = "DELETE_FAILED",
    }
}

words! {
    /// What became of an update.
    LastUpdateStatus {
        /// It is in force.
        Successful = "Successful",
        /// It is not, and what was before stays in force.
        Failed = "Failed",
        /// Being made.
        InProgress = "InProgress",
    }
}

words! {
    /// Why something failed, for programs.
    StateReasonCode {
        /// The network forbids it.
        DisallowedByVpcEncryptionControl = "DisallowedByVpcEncryptionControl",
        /// Too many requests for the network.
        Ec2RequestLimitExceeded = "Ec2RequestLimitExceeded",
        /// The role may not.
        InsufficientRolePermissions = "InsufficientRolePermissions",
        /// Something broke on this side.
        InternalError = "InternalError",
        /// No way to the internet.
        InternetGatewayNotAttached = "InternetGatewayNotAttached",
        /// No such security group.
        InvalidSecurityGroup = "InvalidSecurityGroup",
        /// No such subnet.
        InvalidSubnet = "InvalidSubnet",
        /// Too many security groups.
        SecurityGroupsPerInterfaceLimitExceeded = "SecurityGroupsPerInterfaceLimitExceeded",
        /// No address is free.
        SubnetOutOfIpAddresses = "SubnetOutOfIPAddresses",
    }
}

words! {
    /// Which addresses a connector has.
    NetworkProtocol {
        /// Of version 4.
        Ipv4 = "IPv4",
        /// Of both versions.
        DualStack = "DualStack",
    }
}

words! {
    /// What may use a connector.
    ComputeResourceType {
        /// MicroVMs.
        MicroVm = "MicroVm",
        /// Another product.
        WebFunction = "WebFunction",
    }
}

words! {
    /// Where a connector's public addresses come from.
    ElasticIpType {
        /// It has none.
        None = "None",
        /// From the service.
        ServiceManaged = "ServiceManaged",
    }
}
