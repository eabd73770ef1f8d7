package kubernetes

import (
	"maps"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"secretagent/agent/config"
	"secretagent/examples/internal/example"
)

// The pods of policytest/testdata/pods are what the chart's policy makes of pods that ask for the
// sidecar; .ci/helm runs it.

// TestInjectedSidecarIsTheWrittenOne: what is written out in sidecar.yaml and what the chart injects do not
// drift apart, but for the names of the volumes.
func TestInjectedSidecarIsTheWrittenOne(t *testing.T) {
	var written, injected map[string]any
	for _, text := range strings.Split(example.Read(t, "sidecar.yaml"), "\n---\n") {
		if strings.Contains(text, "kind: Pod\n") {
			example.Must(t, yaml.Unmarshal([]byte(text), &written))
		}
	}
	example.Must(t, yaml.Unmarshal([]byte(example.Read(t, "policytest/testdata/pods/bare.yaml")), &injected))
	names := map[string]string{"config": "secretagent-config", "rrsa": "secretagent-rrsa", "shared": "secretagent-files", "keys": "secretagent-keys"}

	want, got := first(written, "initContainers"), first(injected, "initContainers")
	for _, key := range []string{"restartPolicy", "args", "terminationMessagePolicy", "ports", "startupProbe", "livenessProbe", "resources"} {
		if want[key] == nil || !reflect.DeepEqual(got[key], want[key]) {
			t.Errorf("%s is injected as %v and written as %v", key, got[key], want[key])
		}
	}
	for key, value := range maps.All(want["securityContext"].(map[string]any)) {
		if !reflect.DeepEqual(got["securityContext"].(map[string]any)[key], value) {
			t.Errorf("securityContext.%s is injected as %v and written as %v", key, got["securityContext"], value)
		}
	}
	mounts := map[string]any{}
	for _, m := range got["volumeMounts"].([]any) {
		mounts[m.(map[string]any)["name"].(string)] = m
	}
	for _, m := range want["volumeMounts"].([]any) {
		m := m.(map[string]any)
		m["name"] = names[m["name"].(string)]
		if !reflect.DeepEqual(mounts[m["name"].(string)], m) {
			t.Errorf("%v is injected as %v", m, mounts[m["name"].(string)])
		}
	}
	volumes := map[string]any{}
	for _, v := range injected["spec"].(map[string]any)["volumes"].([]any) {
		volumes[v.(map[string]any)["name"].(string)] = v
	}
	for _, v := range written["spec"].(map[string]any)["volumes"].([]any) {
		v := v.(map[string]any)
		v["name"] = names[v["name"].(string)]
		if v["name"] != "secretagent-config" && !reflect.DeepEqual(volumes[v["name"].(string)], v) {
			t.Errorf("%v is injected as %v", v, volumes[v["name"].(string)])
		}
	}
	app, others := first(injected, "containers"), first(written, "containers")
	if !reflect.DeepEqual(app["env"], others["env"]) {
		t.Errorf("the application is told %v and, as written, %v", app["env"], others["env"])
	}

	cm := read(t, "sidecar.yaml").configs["secretagent"]
	file := "/etc/secretagent/agent.yaml"
	byHand, err := config.Parse(file, []byte(cm.Data["agent.yaml"]))
	example.Must(t, err)
	made, err := config.Parse(file, []byte(configuration(injected)))
	example.Must(t, err)
	for what, pair := range map[string][2]any{
		"endpoint":                   {made.Endpoint, byHand.Endpoint},
		"cache":                      {made.Cache, byHand.Cache},
		"metrics":                    {made.Metrics, byHand.Metrics},
		"render.stateDir":            {made.Render.StateDir, byHand.Render.StateDir},
		"upstream.alibaba.endpoints": {made.Upstream.Alibaba.Endpoints, byHand.Upstream.Alibaba.Endpoints},
	} {
		if !reflect.DeepEqual(pair[0], pair[1]) {
			t.Errorf("%s is made as %+v and written as %+v", what, pair[0], pair[1])
		}
	}
}

// TestInjectedConfigurations: what the policy makes of annotations is valid, and reads and writes where
// something is mounted.
func TestInjectedConfigurations(t *testing.T) {
	files, err := filepath.Glob("policytest/testdata/pods/*.yaml")
	example.Must(t, err)
	checked := 0
	for _, file := range files {
		var p map[string]any
		example.Must(t, yaml.Unmarshal([]byte(example.Read(t, file)), &p))
		text := configuration(p)
		if text == "" {
			continue // a ConfigMap's
		}
		checked++
		cfg, err := config.Parse("/etc/secretagent/agent.yaml", []byte(text))
		example.Must(t, err)
		var projected []string
		for _, v := range p["spec"].(map[string]any)["volumes"].([]any) {
			if source, is := v.(map[string]any)["downwardAPI"]; is {
				for _, item := range source.(map[string]any)["items"].([]any) {
					projected = append(projected, "/etc/secretagent/"+item.(map[string]any)["path"].(string))
				}
			}
		}
		for _, template := range cfg.Templates {
			if path.Dir(string(template.Destination)) != "/run/secretagent" {
				t.Errorf("%s: %s is not in the shared volume", file, template.Destination)
			}
			if template.Source != "" && !slices.Contains(projected, string(template.Source)) {
				t.Errorf("%s: %s is not among %v", file, template.Source, projected)
			}
		}
	}
	if checked < 3 {
		t.Errorf("only %d of %v have a configuration", checked, files)
	}
}

// TestChartsReadme: every annotation that the policy knows, and every value, has its explanation.
func TestChartsReadme(t *testing.T) {
	readme, policy := example.Read(t, "chart/README.md"), example.Read(t, "policytest/testdata/alibaba.yaml")
	names := map[string]bool{}
	for _, found := range regexp.MustCompile(`secretagent\.io/([a-z][a-z.-]*[a-z]|[a-z]+-)['"]`).FindAllStringSubmatch(policy, -1) {
		name := found[1]
		if strings.HasSuffix(name, "-") {
			name += "NAME"
		}
		names[name] = true
	}
	if len(names) < 15 {
		t.Fatalf("the policy knows only %v", names)
	}
	for name := range names {
		if !strings.Contains(readme, "`"+name+"`") && !strings.Contains(readme, "`secretagent.io/"+name) {
			t.Errorf("chart/README.md does not say what secretagent.io/%s is", name)
		}
	}
	lines := strings.Split(example.Read(t, "chart/values.yaml"), "\n")
	for i, line := range lines[1:] {
		if before := strings.TrimSpace(lines[i]); regexp.MustCompile(`^ *\w+:`).MatchString(line) && !strings.HasPrefix(before, "#") {
			t.Errorf("values.yaml: %s has no comment", line)
		}
	}
}

// first returns the first container of a list of a pod.
func first(pod map[string]any, containers string) map[string]any {
	return pod["spec"].(map[string]any)[containers].([]any)[0].(map[string]any)
}

// configuration returns the agent.yaml of a pod that has no ConfigMap.
func configuration(pod map[string]any) string {
	text, _ := pod["metadata"].(map[string]any)["annotations"].(map[string]any)["secretagent.io/agent.yaml"].(string)
	return text
}
