package cache_test

func runSealedWriter() bool { return false }
