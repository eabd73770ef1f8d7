package render

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"
)

// victimDir, when set, makes the test binary an agent that is killed.
const victimDir = "RENDER_TEST_VICTIM_DIR"

// runVictim publishes a set and a file over and over, as fast as it can, until it is killed.
// All content of one moment is the same number, repeated.
func runVictim(dir string) {
	src := newFakeSource()
	base := time.Now().UnixNano()
	rotate := func(i int64) {
		v := strings.Repeat(fmt.Sprintf("%020d\n", base+i), 400)
		src.put("crt", v, "key", v, "seq", v)
	}
	rotate(0)
	r, err := New(src, Options{
		Sets:    []Set{{Directory: dir + "/set", NoSync: true, Files: []SetFile{{Name: "tls.crt", Content: inline(`{{ secret "crt" }}`)}, {Name: "tls.key", Content: inline(`{{ secret "key" }}`)}}}},
		Targets: []Target{fileAt(dir+"/file", `{{ secret "seq" }}`)},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second) // never an orphan for long
	defer cancel()
	go func() {
		for i := int64(1); ctx.Err() == nil; i++ {
			rotate(i)
			time.Sleep(200 * time.Microsecond)
		}
	}()
	_ = r.Run(ctx)
}
