// A server that speaks MongoDB's protocol, over PostgreSQL: for test machines where no mongod can be had.
package main

import (
	"context"
	"flag"
	"log"
	"os"
	"os/signal"
	"syscall"

	"github.com/FerretDB/FerretDB/ferretdb"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:27017", "address to listen on")
	postgres := flag.String("postgres", "", "URL of the PostgreSQL database that holds the data")
	socket := flag.String("socket", "mongo.sock", "Unix socket to use within")
	flag.Parse()
	// Left by one that was killed.
	os.Remove(*socket)
	server, err := ferretdb.New(&ferretdb.Config{
		Listener:      ferretdb.ListenerConfig{Unix: *socket},
		Handler:       "postgresql",
		PostgreSQLURL: *postgres,
	})
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	go func() {
		if err := serve(*listen, *socket); err != nil {
			log.Print(err)
			stop()
		}
	}()
	if err := server.Run(ctx); err != nil {
		log.Print(err)
	}
}
