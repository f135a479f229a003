//! A small axum service that knew nothing of hitless, `src/hitless/examples/plain.rs`, after it was made hitless in ten lines.

use lab::host::Host;
use lab::stage::{Listen, Stage};
use lab::subject::Subject;

use crate::template;

/// Its name, and that of its example and its units.
pub const NAME: &str = "adopted";

/// Installs it there, with the two units beside the example.
pub async fn deploy(host: Host, template: &Subject) -> anyhow::Result<Stage> {
    let program = template::build_machinery_example(template, NAME).await?;
    host.put(&program, &format!("/opt/{NAME}/{NAME}"), 0o755).await?;
    for unit in [format!("{NAME}.socket"), format!("{NAME}.service")] {
        let text = std::fs::read_to_string(template.directory.join("src/hitless/examples").join(&unit))?;
        host.write(&text, &format!("/etc/systemd/system/{unit}")).await?;
    }
    host.run(&format!("systemctl daemon-reload && systemctl enable --now {NAME}.socket {NAME}.service")).await?;
    Ok(Stage::Host { host, name: NAME.into(), listen: Listen::Tcp })
}
