use super::*;

#[test]
fn only_an_end_with_its_vmm_is_no_crash() {
    for (exit, words, expected) in [
        (Exit::Code(0), "", EndCause::VmmDisconnected),
        (Exit::Code(1), "", EndCause::Crashed),
        (Exit::Signal(9), "Client disconnected, shutting down", EndCause::Crashed),
        (Exit::Unknown, "[INFO] Client disconnected, shutting down", EndCause::VmmDisconnected),
        (Exit::Unknown, "", EndCause::Crashed),
    ] {
        assert_eq!(cause(exit, words), expected, "{exit:?} {words:?}");
    }
}
