//! `pilotlight serve`: a server over this machine's VMs, or one role of it.

use std::sync::Arc;

use anyhow::{Context, bail};
use api::host::Layout;
use control::ControlConfig;
use host::{HostConfig, LocalHost};

use crate::{
    cli::RolesArguments,
    config::Config,
    doctor,
    roles::Roles,
    server::{self, EdgeIs, Guests},
};

/// Serves until SIGTERM or SIGINT.
pub fn serve(arguments: RolesArguments) -> anyhow::Result<()> {
    let config = Config::load(&arguments.serve)?;
    let edge_is = match arguments.roles {
        Roles::All => EdgeIs::Here,
        _ if config.edge_port == 0 => bail!(
            "edge_port is 0, which takes a free port; with --roles two processes have to know it, so give edge_port in the \
             configuration, or --edge-port, a number"
        ),
        Roles::ControlAndHost | Roles::Edge => EdgeIs::Apart(|host: Arc<LocalHost>| host),
    };
    server::log_to_stderr();
    if !rustix::process::geteuid().is_root() {
        bail!("serving microVMs needs root, for network namespaces and mounts: run it with sudo");
    }
    if arguments.roles == Roles::Edge {
        return server::run_edge(&config);
    }
    let choice = doctor::choose(&config)?;
    for (what, path) in [("guest kernel", config.kernel(choice.driver)), ("guest initramfs", config.initramfs())] {
        if !path.is_file() {
            bail!("there is no {what} at {}: run `make setup`, or name it with a flag", path.display());
        }
    }
    let guests = Guests { name: choice.name.to_owned(), because: choice.because.clone() };
    let limits = ControlConfig { quotas: config.quotas.clone(), ..ControlConfig::default() };
    server::run(&config, limits, &guests, edge_is, async |artifacts| {
        let pager = std::env::current_exe().context("this program has no path")?.with_file_name("pilotlight-pager");
        let host = LocalHost::start(HostConfig {
            layout: Layout { data: config.data_dir.clone() },
            kernel: std::path::absolute(config.kernel(choice.driver))?,
            initramfs: std::path::absolute(config.initramfs())?,
            accel: choice.accel,
            driver: choice.driver,
            vmm: choice.program.clone(),
            pager,
            builder_storage: std::path::absolute(config.assets_dir.join("storage"))?,
            artifacts,
            nameservers: config.guest_nameservers(),
            namespaces_ready: config.namespaces_ready,
            launches_ready: config.launches_ready,
            wakes_ready: config.wakes_ready,
        })
        .await?;
        let stop = Arc::clone(&host);
        Ok((host, async move { stop.stop().await }))
    })
}
