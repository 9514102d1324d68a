"""Attribution: from what an engine tells of its steps to what each request took, by work, to the microsecond."""
