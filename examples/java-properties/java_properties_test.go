// Package javaproperties holds a properties file for Java; this test reads it with Java.
package javaproperties

import (
	"encoding/json"
	"strings"
	"testing"

	"secretagent/examples/internal/example"
)

func TestJavaProperties(t *testing.T) {
	a := example.Start(t)
	a.Ready(t)
	file := a.Path("var", "app", "application.properties")
	got := example.Read(t, file)
	want := "spring.data.redis.host=127.0.0.1\nspring.data.redis.port=6379\n" +
		"spring.datasource.password=first\nspring.datasource.username=app\n"
	if got != want {
		t.Errorf("the file is\n%snot\n%s", got, want)
	}

	const tricky = ` a=b:c#d!e\u0041\é€😀	tab`
	value, err := json.Marshal(map[string]string{"username": "app", "password": tricky})
	example.Must(t, err)
	a.Secret(tricky)
	a.Put(t, "demo/db", string(value))
	example.Eventually(t, "the new value", func() bool { return example.Read(t, file) != got })
	t.Run("java", func(t *testing.T) {
		out, code := example.Output(t, a.Dir, nil, example.Tool(t, "java"), "Show.java", file)
		if code != 0 && (strings.Contains(out, "jdk.compiler") || strings.Contains(out, "Could not find or load main class")) {
			t.Skip("this Java has no compiler: a JDK is needed")
		}
		if code != 0 || !strings.Contains(out, "spring.datasource.password="+tricky+"\n") {
			t.Errorf("exit code %d, Java reads\n%s", code, out)
		}
	})
}
