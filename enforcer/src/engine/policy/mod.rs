//! Policy files: text in, rules that cannot be wrong out.
