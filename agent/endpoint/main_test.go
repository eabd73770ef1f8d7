package endpoint_test

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(loadEnv); role != "" {
		os.Exit(loadMain(role)) // the benchmark's client process
	}
	goleak.VerifyTestMain(m)
}
