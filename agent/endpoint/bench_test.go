package endpoint_test

const loadEnv = "SECRETAGENT_BENCH_LOAD"

func loadMain(string) int { return 0 }
