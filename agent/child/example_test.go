//go:build unix

package child_test

import (
	"context"
	"fmt"
	"os"

	"secretagent/agent/child"
	"secretagent/upstream"
)

// fixed is a source that never changes.
type fixed string

func (f fixed) GetSecretValues(_ context.Context, refs ...upstream.SecretRef) ([]upstream.SecretValue, error) {
	values := make([]upstream.SecretValue, len(refs))
	for i, ref := range refs {
		values[i] = upstream.SecretValue{SecretName: ref.SecretName, SecretData: upstream.NewSecretData([]byte(f))}
	}
	return values, nil
}

func (fixed) Subscribe(...upstream.SecretRef) (<-chan struct{}, func()) { return nil, func() {} }

func ExampleSupervisor() {
	db := upstream.SecretRef{SecretName: "app/db"}
	s, err := child.New(fixed(`{"user":"app","port":5432}`), child.Options{
		Command: []string{"sh", "-c", `echo "$DB_USER on $PORT"; exit 3`},
		Env:     []child.Variable{{Name: "PORT", Ref: db, Field: "port"}, {Ref: db, Prefix: "DB_", Case: child.UpperCase}},
		Stdout:  os.Stdout,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(s.Run(context.Background()))
	// Output:
	// app on 5432
	// the application exited with code 3
}
