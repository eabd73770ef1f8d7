package cache_test

// unusable returns what can be in the place of the sealed file, and how to make it.
func unusable(string) map[string]func() error { return map[string]func() error{} }
