//! How often clients get into the log.

use super::*;

#[test]
fn a_kind_is_told_at_once_and_then_once_in_a_while_with_all_that_came_meanwhile() {
    let notices = Notices::default();
    let state = |kind| {
        let notice = notices.notice(kind);
        (notice.told, notice.untold, notice.last)
    };
    let before = Instant::now();
    notices.tell(Kind::Full, Peer::Unix);
    let (told, ..) = state(Kind::Full);
    assert!(told.is_some_and(|told| told >= before));
    assert_eq!(state(Kind::Full), (told, 0, None));

    for untold in 1..4 {
        notices.tell(Kind::Full, Peer::Unix);
        notices.tell_rest();
        assert_eq!(state(Kind::Full), (told, untold, Some(Peer::Unix)));
    }
    assert_eq!(state(Kind::Silent), (None, 0, None), "each kind has a time of its own");

    let long_ago = before.checked_sub(PAUSE);
    notices.notice(Kind::Full).told = long_ago;
    notices.tell_rest();
    let (told, untold, last) = state(Kind::Full);
    assert!(told > long_ago && (untold, last) == (0, None));
    notices.notice(Kind::Full).told = long_ago;
    notices.tell_rest();
    assert_eq!(state(Kind::Full), (long_ago, 0, None), "there is nothing to tell");
}

#[test]
fn each_kind_says_something_else() {
    let mut said = Kind::ALL.map(|kind| kind.to_string()).to_vec();
    said.sort();
    said.dedup();
    assert_eq!(said.len(), Kind::ALL.len(), "{said:?}");
}
