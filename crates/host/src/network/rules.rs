//! The host's own packet rules for its guests: out to the internet, nowhere else.

use std::net::{IpAddr, Ipv4Addr};

use super::{NetworkError, run};

/// Networks that are not the internet: this host's, its neighbours', and the addresses clouds serve metadata at.
/// IANA's special-purpose registry (RFC 6890), plus multicast.
const NOT_INTERNET: &str = "0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, \
     192.0.0.0/24, 192.168.0.0/16, 198.18.0.0/15, 224.0.0.0/4, 240.0.0.0/4";

/// Installs the table of this host, replacing an older one, in one transaction.
pub async fn install(owner: &str, network: Ipv4Addr, prefix: u8, nameservers: &[IpAddr]) -> Result<(), NetworkError> {
    let names: Vec<String> = nameservers.iter().filter(|address| address.is_ipv4()).map(IpAddr::to_string).collect();
    let dns = if names.is_empty() {
        String::new()
    } else {
        format!(
            "iifname \"plv{owner}*\" ip daddr {{ {0} }} meta l4proto {{ tcp, udp }} th dport 53 accept;",
            names.join(", ")
        )
    };
    let table = format!("pilotlight_{owner}");
    let script = format!(
        "table inet {table} {{}}\n\
         delete table inet {table}\n\
         table inet {table} {{\n\
           chain input {{ type filter hook input priority 0; policy accept; \
             iifname \"plv{owner}*\" ct state established,related accept; iifname \"plv{owner}*\" drop; }}\n\
           chain forward {{ type filter hook forward priority 0; policy accept; \
             {dns} \
             iifname \"plv{owner}*\" ip daddr {{ {NOT_INTERNET} }} drop; \
             iifname \"plv{owner}*\" meta nfproto ipv6 drop; \
             oifname \"plv{owner}*\" ct state established,related accept; \
             oifname \"plv{owner}*\" drop; }}\n\
           chain postrouting {{ type nat hook postrouting priority 100; ip saddr {network}/{prefix} masquerade; }}\n\
         }}\n"
    );
    run("nft", &["-f", "-"], &script).await?;
    run("sysctl", &["-qw", "net.ipv4.ip_forward=1"], "").await?;
    Ok(())
}

/// Removes the table of this host; absent is fine.
pub async fn remove(owner: &str) -> Result<(), NetworkError> {
    let table = format!("pilotlight_{owner}");
    run("nft", &["-f", "-"], &format!("table inet {table} {{}}\ndelete table inet {table}\n")).await?;
    Ok(())
}
