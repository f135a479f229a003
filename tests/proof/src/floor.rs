//! The floor under every restart: what systemd itself takes to replace a process in this sandbox. A service that does
//! nothing but say that it is ready is restarted beside the one that is measured.
//!
//! There are two of them. One has nothing; the other holds as many descriptors as the service has connections, all of one
//! socket, and does nothing with them either: the kernel has to close them, and may have more to tidy up.

use std::os::unix::net::UnixDatagram;

use anyhow::{Context, ensure};

use crate::measure::median;
use lab::host::Host;

const UNIT: &str = "lab-floor";

/// The one that holds descriptors.
const HOLDER: &str = "lab-holder";

/// Where the laboratory's own program lies on the host.
const PROGRAM: &str = "/opt/lab-floor/lab";

/// What a service does that does nothing.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// How many descriptors it holds.
    #[arg(long, default_value_t = 0)]
    hold: usize,
}

/// The service: it says `READY=1` and waits for a signal to end it. Nothing that a program does faster could be
/// restarted: not even a handler for the signal is set up.
///
/// # Errors
/// When there is no service manager, or descriptors cannot be had.
pub fn serve(options: &Options) -> anyhow::Result<()> {
    let manager =
        std::env::var_os("NOTIFY_SOCKET").context("NOTIFY_SOCKET is not set: this is for systemd to start")?;
    let socket = UnixDatagram::unbound()?;
    socket.send_to(b"READY=1", manager)?;
    let _held = (0..options.hold).map(|_| socket.try_clone()).collect::<std::io::Result<Vec<_>>>()?;
    loop {
        std::thread::park();
    }
}

/// Its unit, made from that of the service `name`: everything but what it starts, what it listens on, and the watchdog
/// that it would have to feed. It is called `unit`, and holds so many descriptors.
fn unit(of: &str, name: &str, unit: &str, hold: u32) -> String {
    let own = ["ExecStart=", "Requires=", "Sockets=", "WatchdogSec="];
    let after = format!("After={name}.socket");
    let named = ["User=", "StateDirectory=", "RuntimeDirectory="];
    let mut text = String::new();
    for line in of.lines().filter(|line| !own.iter().any(|key| line.starts_with(key)) && !line.starts_with(&after)) {
        match named.iter().find(|key| line.strip_prefix(**key) == Some(name)) {
            Some(key) => text += &format!("{key}{unit}"),
            None => text += line,
        }
        text += "\n";
        if line == "[Service]" {
            text += &format!("ExecStart={PROGRAM} floor --hold {hold}\n");
        }
    }
    text
}

/// The parts of a sandbox, in the order in which [`sandbox`] adds them: what they are for, and how their settings begin.
const PARTS: [(&str, &[&str]); 8] = [
    ("limits", &["Limit", "Memory", "Tasks", "CPU", "OOM", "Log", "UMask"]),
    (
        "system calls and capabilities",
        &[
            "Capability",
            "NoNew",
            "LockPersonality",
            "MemoryDeny",
            "RestrictNamespaces",
            "RestrictRealtime",
            "RestrictSUID",
            "SystemCall",
            "RestrictAddress",
        ],
    ),
    (
        "networks, users, IPC, host name of its own",
        &["PrivateNetwork", "PrivateUsers", "PrivateIPC", "RemoveIPC", "ProtectHostname"],
    ),
    ("a user for the time, its folders", &["DynamicUser", "User=", "State", "RuntimeDirectory"]),
    ("a file system that cannot be written to", &["ProtectSystem", "ProtectHome", "PrivateTmp"]),
    ("processes out of sight", &["ProtectProc", "ProcSubset"]),
    (
        "devices, clock, modules, logs, control groups",
        &[
            "PrivateDevices",
            "DevicePolicy",
            "ProtectClock",
            "ProtectKernelLogs",
            "ProtectKernelModules",
            "ProtectControl",
        ],
    ),
    ("tunables", &["ProtectKernelTunables"]),
];

/// What each part of the sandbox costs: the floor without any of it, then with one part more each time. A part's name,
/// and the median of `rounds` restarts, in milliseconds.
pub async fn sandbox(host: &Host, rounds: usize) -> anyhow::Result<Vec<(&'static str, f64)>> {
    let whole = host.run(&format!("cat /etc/systemd/system/{UNIT}.service")).await?;
    let mut steps = vec![(
        "systemd, without a sandbox",
        format!("[Unit]\nStartLimitIntervalSec=0\n[Service]\nType=notify\nExecStart={PROGRAM} floor\n"),
    )];
    for (part, settings) in PARTS {
        let mut unit = steps.last().map(|(_, unit)| unit.clone()).unwrap_or_default();
        for line in whole.lines().filter(|line| settings.iter().any(|setting| line.starts_with(setting))) {
            unit += &format!("{line}\n");
        }
        steps.push((part, unit));
    }
    let names: Vec<_> = (0..steps.len()).map(|step| format!("{UNIT}-{step}")).collect();
    for (name, (_, unit)) in names.iter().zip(&steps) {
        host.write(unit, &format!("/etc/systemd/system/{name}.service")).await?;
    }
    host.run(&format!("systemctl daemon-reload && systemctl start {}", names.join(" "))).await?;
    let mut took = vec![vec![]; steps.len()];
    // In turn, so that what disturbs disturbs all of them.
    for _ in 0..rounds {
        for (name, took) in names.iter().zip(&mut took) {
            took.push(restarted(host, name).await?);
        }
    }
    host.run(&format!("systemctl stop {}", names.join(" "))).await?;
    Ok(steps.iter().map(|(part, _)| *part).zip(took.iter().map(|took| median(took))).collect())
}

/// Installs and starts both on a host where the service `name` is; the one holds a descriptor for each connection.
pub async fn install(host: &Host, name: &str, connections: u32) -> anyhow::Result<()> {
    host.put(&std::env::current_exe()?, PROGRAM, 0o755).await?;
    let of = host.run(&format!("cat /etc/systemd/system/{name}.service")).await?;
    for (floor, hold) in [(UNIT, 0), (HOLDER, connections)] {
        host.write(&unit(&of, name, floor, hold), &format!("/etc/systemd/system/{floor}.service")).await?;
    }
    host.run(&format!("systemctl daemon-reload && systemctl restart {UNIT} {HOLDER}"))
        .await
        .context("starting the floor")
        .map(drop)
}

/// Restarts them, and says how many milliseconds there were between the signal to the old process and `READY=1` of the
/// new one: by systemd's own clock, so that what it takes to call systemctl(1) does not count. First of the one that has
/// nothing, then of the one that holds descriptors.
pub async fn restart(host: &Host) -> anyhow::Result<[f64; 2]> {
    Ok([restarted(host, UNIT).await?, restarted(host, HOLDER).await?])
}

async fn restarted(host: &Host, unit: &str) -> anyhow::Result<f64> {
    host.run(&format!("systemctl restart {unit}")).await?;
    let [from, to] = moments(host, unit, ["ActiveExit", "ActiveEnter"]).await?;
    ensure!(from < to, "{unit} was not restarted");
    Ok(to - from)
}

/// When a unit last passed some states, in milliseconds of systemd's monotonic clock.
pub async fn moments<const N: usize>(host: &Host, unit: &str, states: [&str; N]) -> anyhow::Result<[f64; N]> {
    let properties = states.map(|state| format!("{state}TimestampMonotonic"));
    let shown = host.run(&format!("systemctl show --property={} {unit}", properties.join(","))).await?;
    let mut moments = [0.0; N];
    for (moment, property) in moments.iter_mut().zip(&properties) {
        let value = shown.lines().find_map(|line| line.strip_prefix(property.as_str())?.strip_prefix('='));
        let micros: f64 = value.with_context(|| format!("{unit} has no {property}"))?.parse()?;
        *moment = micros / 1e3;
    }
    Ok(moments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_unit_is_the_services_but_for_what_it_starts() {
        let of = "[Unit]\nRequires=a.socket\nAfter=a.socket network.target\n[Service]\nExecStart=/opt/a/current/a run\n\
                  Sockets=a.socket\nWatchdogSec=30s\nUser=a\nStateDirectory=a\nStateDirectoryMode=0700\nPrivateTmp=yes\n";
        let floor = "[Unit]\n[Service]\nExecStart=/opt/lab-floor/lab floor --hold 7\nUser=lab-floor\nStateDirectory=lab-floor\n\
                     StateDirectoryMode=0700\nPrivateTmp=yes\n";
        assert_eq!(unit(of, "a", UNIT, 7), floor);
    }
}
