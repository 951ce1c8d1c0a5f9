from critiq.cli import main

main()
