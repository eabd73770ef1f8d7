package config

import (
	"fmt"
	"strings"
	"testing"
)

// BenchmarkParse reads a configuration with a thousand templates and two hundred secrets.
func BenchmarkParse(b *testing.B) {
	var src strings.Builder
	src.WriteString("upstream: {local: }\nsecrets:\n")
	for i := range 200 {
		fmt.Fprintf(&src, "  - {name: app/secret-%d, ttl: 1m}\n", i)
	}
	src.WriteString("templates:\n")
	for i := range 1000 {
		fmt.Fprintf(&src, "  - source: ./templates/%d.tmpl\n    destination: ./out/%d\n    mode: \"0640\"\n    hook: {command: [reload, \"%d\"], timeout: 5s}\n", i, i, i)
	}
	doc := []byte(src.String())
	b.SetBytes(int64(len(doc)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse("/etc/secretagent/agent.yaml", doc); err != nil {
			b.Fatal(err)
		}
	}
}
