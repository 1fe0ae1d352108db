use enforcer_tests::harness::Test;
pub(crate) fn tests() -> Vec<Test> {
    vec![]
}
