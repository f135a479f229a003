//! What systemd sets is not taken for a setting, whatever the service is called.

use super::*;

#[test]
fn what_systemd_sets_is_not_for_a_service_whose_name_begins_like_it() {
    for name in SYSTEMD.split_whitespace() {
        let parts: Vec<&str> = name.split('_').collect();
        for length in 1..parts.len() {
            let prefix = parts[..length].join("_") + "_";
            let variables = [(name.into(), "1".into()), ((name.to_owned() + "_").into(), "1".into())];
            let settings = of(&prefix, variables).unwrap();
            assert_eq!(settings.iter().map(Setting::is_anothers).collect::<Vec<_>>(), [true, false], "{prefix}");
        }
    }
}
